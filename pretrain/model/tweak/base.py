"""Tweak: a change to the towers that holds for a phase, made before they are wrapped for DDP."""

from __future__ import annotations

from pretrain.model.encoder import DualEncoder


class Tweak:
    """Base of every tweak. Subclasses are ``@dataclass(frozen=True, kw_only=True)``."""

    def apply(self, encoder: DualEncoder) -> None:
        """Change the encoder in place. Every phase begins with ``encoder.thaw()``, then its tweaks.

        Raises ValueError with a hint for an encoder this tweak cannot be applied to.
        """
        raise NotImplementedError
