"""The optimizers from their papers' formulas, in NumPy and float64."""

import numpy as np

from configs.schema import OptimizerConfig


class NumpyAdam:
    """Kingma and Ba 2015: algorithm 1, its last lines in the order of the end of section 2.

    With a decay it is algorithm 2 of Loshchilov and Hutter 2019: the schedule multiplies both
    parts of the update; here on matrices only.
    """

    def __init__(self, config: OptimizerConfig, values):
        self.config = config
        self.values = [np.array(value, np.float64) for value in values]
        self.momentum = [np.zeros_like(value) for value in self.values]
        self.velocity = [np.zeros_like(value) for value in self.values]
        self.updates = 0

    def apply(self, gradients, rate: float) -> None:
        self.updates += 1
        beta_1, beta_2 = self.config.beta_1, self.config.beta_2
        alpha = rate * np.sqrt(1 - beta_2**self.updates) / (1 - beta_1**self.updates)
        for index, gradient in enumerate(gradients):
            m = beta_1 * self.momentum[index] + (1 - beta_1) * gradient
            v = beta_2 * self.velocity[index] + (1 - beta_2) * gradient**2
            old = self.values[index]
            new = old - alpha * m / (np.sqrt(v) + self.config.epsilon)
            if self.config.name in ("adamw", "muon") and old.ndim > 1:
                new -= rate * self.config.weight_decay * old
            self.momentum[index], self.velocity[index], self.values[index] = m, v, new


class NumpyLion:
    """Chen et al. 2023, algorithm 2; the decay on matrices only."""

    def __init__(self, config: OptimizerConfig, values):
        self.config = config
        self.values = [np.array(value, np.float64) for value in values]
        self.momentum = [np.zeros_like(value) for value in self.values]

    def apply(self, gradients, rate: float) -> None:
        beta_1, beta_2 = self.config.beta_1, self.config.beta_2
        for index, gradient in enumerate(gradients):
            old, momentum = self.values[index], self.momentum[index]
            update = np.sign(beta_1 * momentum + (1 - beta_1) * gradient)
            decay = self.config.weight_decay if old.ndim > 1 else 0.0
            self.values[index] = old - rate * (update + decay * old)
            self.momentum[index] = beta_2 * momentum + (1 - beta_2) * gradient


class NumpyMuon:
    """Jordan 2024 on matrices, with singular values in the place of the iteration's matrices.

    Every step of the iteration is an odd polynomial of the matrix, so it maps each singular value
    by that polynomial and leaves the singular vectors alone. All else goes to AdamW.
    """

    def __init__(self, config: OptimizerConfig, values):
        self.config, self.adamw = config, NumpyAdam(config, values)
        self.values = self.adamw.values
        self.momentum = [np.zeros_like(value) for value in self.values]

    def apply(self, gradients, rate: float) -> None:
        before = list(self.values)
        self.adamw.apply(gradients, rate)
        for index, (old, gradient) in enumerate(zip(before, gradients, strict=True)):
            if old.ndim == 2:
                self.momentum[index] = 0.95 * self.momentum[index] + gradient
                u, sizes, v = np.linalg.svd(gradient + 0.95 * self.momentum[index], False)
                sizes = sizes / np.linalg.norm(sizes)
                for _ in range(5):
                    sizes = 3.4445 * sizes - 4.7750 * sizes**3 + 2.0315 * sizes**5
                update = 0.2 * np.sqrt(max(old.shape)) * (u * sizes) @ v
                self.values[index] = old - rate * (update + self.config.weight_decay * old)


class NumpyAdafactor:
    """Shazeer and Stern 2018: algorithm 4 for vectors and small matrices, algorithm 5 for others.

    Constants of algorithm 6. A tensor of rank 3 is a stack of matrices, whose clipping and scale
    are those of the whole.
    """

    def __init__(self, config: OptimizerConfig, values):
        self.values = [np.array(value, np.float64) for value in values]
        self.square = [np.zeros_like(value) for value in self.values]
        self.row = [np.zeros(value.shape[:-1]) for value in self.values]
        self.column = [np.zeros(value.shape[:-2] + value.shape[-1:]) for value in self.values]
        self.updates = 0
        self.clipped: list[list[bool]] = []

    def second_moment(self, index: int, square: np.ndarray, decay: float) -> np.ndarray:
        """Algorithm 5 with sums over rows and columns, as the paper has it."""
        if square.ndim < 2 or min(square.shape[-2:]) < 128:
            self.square[index] = decay * self.square[index] + (1 - decay) * square
            return self.square[index]
        self.row[index] = decay * self.row[index] + (1 - decay) * square.sum(-1)
        self.column[index] = decay * self.column[index] + (1 - decay) * square.sum(-2)
        outer = np.einsum("...r,...c->...rc", self.row[index], self.column[index])
        return outer / self.row[index].sum(-1)[..., np.newaxis, np.newaxis]

    def apply(self, gradients, rate: float) -> None:
        self.updates += 1
        clipped = []
        for index, gradient in enumerate(gradients):
            moment = self.second_moment(index, gradient**2 + 1e-30, 1 - self.updates**-0.8)
            update = gradient / np.sqrt(moment)
            size = np.sqrt((update**2).mean())
            clipped.append(size > 1.0)
            scale = max(1e-3, np.sqrt((self.values[index] ** 2).mean()))
            self.values[index] = self.values[index] - rate * scale * update / max(1.0, size)
        self.clipped.append(clipped)
