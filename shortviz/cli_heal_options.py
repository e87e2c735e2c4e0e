"""What `shortviz heal` accepts of a recipe: a preset, and each setting behind it."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shortviz.heal_settings import HealSettings
    from shortviz.records import ModelInfo


@dataclass(frozen=True, kw_only=True)
class HealOptions:
    """The recipe: a preset, and what is changed in it."""

    preset: Annotated[str, typer.Option(help="quick, good, or paper (for a GPU); the options below change it.")] = (
        "good"
    )
    method: Annotated[str | None, typer.Option(help="lora, or partial: final norm, head, last layers.")] = None
    objective: Annotated[str | None, typer.Option(help="next_token, distill, seam, or mixed (distill and seam).")] = (
        None
    )
    rank: Annotated[int | None, typer.Option(help="lora: rank of the adapters.")] = None
    alpha: Annotated[int | None, typer.Option(help="lora: scale times rank.  [default: the rank]")] = None
    dropout: Annotated[float | None, typer.Option(help="lora: share of inputs dropped.")] = None
    targets: Annotated[str | None, typer.Option(help="lora: mlp, all, or names such as q_proj,v_proj.")] = None
    last_layers: Annotated[int | None, typer.Option(help="partial: layers trained at the end of the stack.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="The highest one.")] = None
    warmup_steps: Annotated[int | None, typer.Option(help="Steps until it is reached.")] = None
    steps: Annotated[int | None, typer.Option(help="Updates.")] = None
    train_batch: Annotated[int | None, typer.Option(help="Windows run at once.")] = None
    accumulate: Annotated[int | None, typer.Option(help="Batches behind one update.")] = None
    length: Annotated[int | None, typer.Option(help="Tokens in a training window.")] = None
    temperature: Annotated[float | None, typer.Option(help="distill, mixed: temperature.")] = None
    mix: Annotated[float | None, typer.Option(help="distill, mixed: share of distillation, the rest next tokens.")] = (
        None
    )
    seam_weight: Annotated[float | None, typer.Option(help="mixed: weight of the seam's error.")] = None
    eval_every: Annotated[int | None, typer.Option(help="Steps between two looks at held-out text.")] = None
    precision: Annotated[str | None, typer.Option(help="model (its dtype), or bfloat16 while training.")] = None
    quantize: Annotated[str | None, typer.Option(help="none, or 4bit while training (CUDA, bitsandbytes).")] = None
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False

    def changes(self, seed: int) -> dict[str, Any]:
        """Return what is changed in the preset."""
        names = {"train_batch": "batch_size"}
        given = {names.get(f.name, f.name): getattr(self, f.name) for f in fields(self) if f.name != "preset"}
        return {name: value for name, value in given.items() if value is not None and value is not False} | {
            "seed": seed
        }

    def settings(self, model: "ModelInfo | None", seed: int) -> "HealSettings":
        """Return the recipe, fitted to a model; raises ShortvizError where a value makes no sense."""
        from shortviz.heal_settings import preset

        return preset(self.preset, model, **self.changes(seed))
