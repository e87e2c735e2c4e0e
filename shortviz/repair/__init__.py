"""Closed-form repair of a seam."""
