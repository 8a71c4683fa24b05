"""The progress bar: one for a whole training, counting batches, showing epoch and loss."""

from __future__ import annotations

from tqdm import tqdm


class Progress:
    """A tqdm bar over `epochs` times `batches_per_epoch` batches.

    Args:
        shown: True shows it, False never, None only where standard error is a terminal.
    """

    def __init__(self, name: str, epochs: int, batches_per_epoch: int, *, first_epoch: int, shown: bool | None) -> None:
        self._name = name
        self._epochs = epochs
        self._evaluated = ""
        self._bar = tqdm(
            total=epochs * batches_per_epoch,
            initial=first_epoch * batches_per_epoch,
            desc=name,
            unit="batch",
            leave=True,
            disable={True: False, False: True, None: None}[shown],
        )

    def epoch(self, epoch: int) -> None:
        self._bar.set_description(f"{self._name} epoch {epoch + 1}/{self._epochs}", refresh=False)

    def batch(self) -> None:
        self._bar.update(1)

    def loss(self, value: float) -> None:
        self._bar.set_postfix_str(f"loss {value:.6g}{self._evaluated}", refresh=False)

    def evaluated(self, values: dict[str, float]) -> None:
        """Shows the evaluation's values until the next one."""
        self._evaluated = "".join(f", {name} {value:.6g}" for name, value in values.items())

    def close(self) -> None:
        self._bar.close()
