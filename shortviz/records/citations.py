"""BibTeX of the methods behind what is shown: one entry a paper, only those that were used. No torch."""

from collections.abc import Iterable

from shortviz.records.run import Run

GROMOV = """@misc{gromov2024unreasonable,
  title  = {The Unreasonable Ineffectiveness of the Deeper Layers},
  author = {Andrey Gromov and Kushal Tirumala and Hassan Shapourian and Paolo Glorioso and Daniel A. Roberts},
  year   = {2024},
  eprint = {2403.17887},
  archivePrefix = {arXiv},
}"""

_PAPERS = {
    "gromov": GROMOV,
    "shortgpt": """@misc{men2024shortgpt,
  title  = {ShortGPT: Layers in Large Language Models are More Redundant Than You Expect},
  author = {Xin Men and Mingyu Xu and Qingyu Zhang and Bingning Wang and Hongyu Lin and Yaojie Lu and Xianpei Han
            and Weipeng Chen},
  year   = {2024},
  eprint = {2403.03853},
  archivePrefix = {arXiv},
}""",
    "subcloning": """@misc{samragh2023weight,
  title  = {Weight subcloning: direct initialization of transformers using larger pretrained ones},
  author = {Mohammad Samragh and Mehrdad Farajtabar and Sachin Mehta and Raviteja Vemulapalli and Fartash Faghri
            and Devang Naik and Oncel Tuzel and Mohammad Rastegari},
  year   = {2023},
  eprint = {2312.09299},
  archivePrefix = {arXiv},
}""",
    "linear": """@misc{razzhigaev2024secretly,
  title  = {Your Transformer is Secretly Linear},
  author = {Anton Razzhigaev and Matvey Mikhalchuk and Elizaveta Goncharova and Nikolai Gerasimenko and Ivan Oseledets
            and Denis Dimitrov and Andrey Kuznetsov},
  year   = {2024},
  eprint = {2405.12250},
  archivePrefix = {arXiv},
}""",
    "sink": """@misc{xiao2023efficient,
  title  = {Efficient Streaming Language Models with Attention Sinks},
  author = {Guangxuan Xiao and Yuandong Tian and Beidi Chen and Song Han and Mike Lewis},
  year   = {2023},
  eprint = {2309.17453},
  archivePrefix = {arXiv},
}""",
    "replaceme": """@misc{shopkhoev2025replaceme,
  title  = {ReplaceMe: Network Simplification via Depth Pruning and Transformer Block Linearization},
  author = {Dmitriy Shopkhoev and Ammar Ali and Magauiya Zhussip and Valentin Malykh and Stamatios Lefkimmiatis
            and Nikos Komodakis and Sergey Zagoruyko},
  year   = {2025},
  eprint = {2505.02819},
  archivePrefix = {arXiv},
}""",
    "comp": """@misc{chen2025prunecomp,
  title  = {Prune\\&Comp: Free Lunch for Layer-Pruned LLMs via Iterative Pruning with Magnitude Compensation},
  author = {Xinrui Chen and Hongxing Zhang and Fanyi Zeng and Yongxian Wei and Yizhi Wang and Xitong Ling
            and Guanghao Li and Chun Yuan},
  year   = {2025},
  eprint = {2507.18212},
  archivePrefix = {arXiv},
}""",
    "lora": """@misc{hu2021lora,
  title  = {LoRA: Low-Rank Adaptation of Large Language Models},
  author = {Edward J. Hu and Yelong Shen and Phillip Wallis and Zeyuan Allen-Zhu and Yuanzhi Li and Shean Wang
            and Lu Wang and Weizhu Chen},
  year   = {2021},
  eprint = {2106.09685},
  archivePrefix = {arXiv},
}""",
}

_OF_CRITERION = {
    "angular_last": "gromov",
    "angular_mean": "gromov",
    "block_influence": "shortgpt",
    "relative_magnitude": "subcloning",
    "linear_replacement": "linear",
}
_OF_TREATMENT = {"fold": "replaceme", "scale": "comp", "comp": "comp", "lora": "lora"}
"""By a word in the method's name."""


def bibtex(criteria: Iterable[str] = (), treatments: Iterable[str] = (), *, sink: bool = False) -> str:
    """Return the entries of these criteria and treatments, each once; the paper of the whole method comes first.

    Args:
        criteria: names of criteria; one of a person's own has no paper.
        treatments: methods of repair and healing, e.g. `linear_fold`, `lora`.
        sink: whether an attention sink is spoken of.
    """
    found = ["gromov", *(_OF_CRITERION[name] for name in criteria if name in _OF_CRITERION)]
    found += [key for method in treatments for word, key in _OF_TREATMENT.items() if word in method]
    found += ["sink"] if sink else []
    return "\n\n".join(_PAPERS[key] for key in dict.fromkeys(found)) + "\n"


def bibtex_of(run: Run) -> str:
    """Return the entries of everything that a run holds."""
    distances = run.distances
    methods = [method for ledger in run.ledgers for step in ledger.steps for method in step.methods]
    return bibtex(
        distances.criteria if distances is not None else (),
        methods,
        sink=distances is not None and bool(distances.norms.sink_layers),
    )
