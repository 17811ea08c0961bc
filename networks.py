"""Every network of MetaMimic: policies, distributional critics, and what looks at images.

MetaMimic (https://arxiv.org/abs/1810.05017), section 2.1 and figure 3 (the large network), figure
6 (the small one, from IMPALA, https://arxiv.org/abs/1802.01561), appendix C.1 (the critic's head).

    python networks.py      prints the networks and their numbers of parameters

Departures from the paper, and what it leaves open:
 1. Policy and critic see images through one encoder, which only the critic's loss trains: one
    pass a batch instead of two.  The paper gives each its own network.
 2. The paper tells convolutions, channels and parameters, not how they are stacked.  Both
    networks are IMPALA's stages (a convolution, a pooling by 2, two residual blocks), with widths
    that give the stated 1.6 and 22 million parameters for two RGB images of 128 x 128.
 3. Convolutions may compute in bfloat16 (--half).
 4. On features there are no images to look at: two layers of 256, and no encoder.
"""

import functools
import math

import torch
from torch import nn


def mlp(inputs, outputs, hidden=256, layers=2):
    """Fully connected layers with layer normalisation and ELU between them (figure 3)."""
    parts = []
    for _ in range(layers):
        parts += [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ELU(inplace=True)]
        inputs = hidden
    return nn.Sequential(*parts, nn.Linear(inputs, outputs))


class Residual(nn.Module):
    """x + conv(elu(conv(elu(x)))), each convolution normalised if `norm`."""

    def __init__(self, channels, norm):
        super().__init__()
        self.first, self.second = (convolution(channels, channels, norm) for _ in range(2))

    def forward(self, x):
        return x + self.second(nn.functional.elu(self.first(nn.functional.elu(x))))


class Normalise(nn.Module):
    """Instance normalisation: each image's channels to mean 0 and variance 1."""

    def forward(self, x):
        x = nn.functional.instance_norm(x)  # puts channels first: pooling such is ten times as slow
        return x.contiguous(memory_format=torch.channels_last)


def convolution(inputs, outputs, norm):
    """3 x 3, and instance normalisation if `norm`."""
    parts = [nn.Conv2d(inputs, outputs, 3, padding=1)]
    return nn.Sequential(*parts, *([Normalise()] if norm else []))


def stage(inputs, outputs, norm):
    """Five convolutions and a halving of the image: IMPALA's figure 3, right."""
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    blocks = [Residual(outputs, norm) for _ in range(2)]
    return nn.Sequential(convolution(inputs, outputs, norm), pool, *blocks)


ENCODERS = {  # name: channels of each stage, width of the layer after them, instance normalisation
    "impala": ((32, 32, 32), 168, False),  # 15 convolutions, 1.6 million parameters
    "large": ((64, 128, 256, 512), 256, True),  # 20 convolutions, 22 million
    "large_without_norm": ((64, 128, 256, 512), 256, False),
}


class Encoder(nn.Module):
    """Images, one or an observation and its goal side by side, to a vector.

    `dial` multiplies every width: 1 is the paper's.
    """

    def __init__(self, name="impala", images=1, size=128, dial=1.0, half="no"):
        super().__init__()
        self.half = half  # convolutions in bfloat16: yes, no, or auto
        channels, width, norm = ENCODERS[name]
        channels = [3 * images, *(max(4, round(dial * c)) for c in channels)]
        self.stages = nn.Sequential(*(stage(i, o, norm) for i, o in zip(channels, channels[1:])))
        side = size
        for _ in channels[1:]:
            side = math.ceil(side / 2)
        self.width = max(4, round(dial * width))
        self.rest = nn.Sequential(
            nn.ELU(), nn.Flatten(), nn.Linear(channels[-1] * side**2, self.width),
            nn.LayerNorm(self.width), nn.ELU(),
        )  # fmt: skip

    def forward(self, images):
        """[B, H, W, 3 images] uint8 to [B, width]."""
        kind = images.device.type
        half = self.half == "yes" or (self.half == "auto" and quick_at_half(kind))
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            x = images.permute(0, 3, 1, 2)  # channels stay last in memory
            x = x.to(torch.bfloat16 if half else torch.float32).mul_(1 / 255).sub_(0.5)
            return self.rest(self.stages(x)).float()


@functools.cache
def quick_at_half(kind):
    """Does this machine multiply bfloat16 faster than float32?"""
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_bf16_supported()


class Scale(nn.Module):
    """Features to mean 0 and variance 1, by numbers that are set once: what images do not need."""

    def __init__(self, inputs):
        super().__init__()
        self.mean, self.scale = (
            nn.Parameter(value, requires_grad=False)  # travels with the weights, never learned
            for value in (torch.zeros(inputs), torch.ones(inputs))
        )

    def fit(self, features, least=0.01):
        """Take mean and spread from examples; what varies less than `least` is not blown up."""
        mean, std = features.mean(0), features.std(0)
        self.mean.copy_(mean)
        self.scale.copy_(1 / std.clamp(min=least))

    def forward(self, x):
        return ((x - self.mean) * self.scale).clamp(-10, 10)


class Policy(nn.Module):
    """π(o | φ): a vector (features, or what the encoder sees) to actions in [-1, 1]."""

    def __init__(self, inputs, actions, hidden=256, layers=2):
        super().__init__()
        self.mlp = mlp(inputs, actions, hidden, layers)
        with torch.no_grad():  # begin with small actions: tanh's slope is where learning happens
            self.mlp[-1].weight *= 0.01
            self.mlp[-1].bias *= 0

    def forward(self, x):
        return self.mlp(x).tanh()


class Critic(nn.Module):
    """Z(o, a | θ): logits ω_i of the atoms z_i, p_i ∝ exp ω_i(o, a) (appendix C.1)."""

    def __init__(self, inputs, actions, atoms=101, hidden=256, layers=2):
        super().__init__()
        self.mlp = mlp(inputs + actions, atoms, hidden, layers)

    def forward(self, x, a):
        return self.mlp(torch.cat((x, a), 1))  # [B, atoms]


def count(*modules):
    """Number of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def flatten(module):
    """Move a module's parameters into one vector, their gradients into another; returns it.

    The parameters become views: Adam, a target copy and publishing weights are then one
    operation each, whatever the network.  Empty if the module has no parameters.
    """
    parameters = list(module.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters] or [torch.zeros(0)])
    flat.grad, begin = torch.zeros_like(flat), 0
    for p in parameters:
        part = slice(begin, begin := begin + p.numel())
        p.data, p.grad = flat[part].view_as(p), flat.grad[part].view_as(p)
    return flat


def unflatten(flats, weights):
    """Put one vector back into the vectors of several modules."""
    begin = 0
    for flat in flats:
        flat.copy_(torch.from_numpy(weights[begin : begin + len(flat)]))
        begin += len(flat)


if __name__ == "__main__":
    for name in ENCODERS:
        encoder = Encoder(name, images=2, size=128)
        policy = Policy(encoder.width, 9)
        print(f"{name}: {count(encoder, policy):,} parameters in encoder and policy")
    print(f"features: {count(Policy(60, 9)):,} in the policy, {count(Critic(60, 9)):,} the critic")
