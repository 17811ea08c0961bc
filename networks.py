"""Every network of both papers: policies, critics, encoders of images and of demonstrations.

MetaMimic (https://arxiv.org/abs/1810.05017), section 2.1 and figure 3 (the large network), figure
6 (the small one, from IMPALA, https://arxiv.org/abs/1802.01561), appendix C.1 (the critic's head).
MILI (https://arxiv.org/abs/2003.02636): section IV-A and figure 3.

    python networks.py      prints the networks and their numbers of parameters

Departures from the papers, and what they leave open:
 1. Policy and critic share one encoder, trained by the critic's loss (and --tell's, departure 8 of
    metamimic.py), never by the policy's: one pass a batch instead of two.  The paper gives each its
    own network.
 2. The paper gives numbers of convolutions, channels and parameters, not how they are stacked.
    Both networks are IMPALA's stages (a convolution, pooling by 2, two residual blocks); widths
    give the stated 1.6 and 22 million parameters for two RGB images of 128 x 128.
 3. Convolutions may compute in bfloat16 (--half).
 4. From features, networks are two layers of 256, without an encoder.
 5. MILI's paper names its layers but not their sizes; its authors' published code (tensor2robot)
    has five convolutions of 32 channels, a spatial softmax, a temporal convolution over 10 frames,
    two layers of 100 and a mixture.  Here, for smaller images and fewer frames, there are four such
    convolutions, 5 frames, and layers of 256.  The policy's spatial softmaxes have queries that
    depend on the embedding and the pose, maps of half the image's size, and return positions on the
    table beside features; those trained as keypoints (OBJECTS, AIMS) use only the cells around the
    hottest.  A softmax keeps no picture, so three convolutions look at a crop around one keypoint
    and predict where exactly the gripper comes down and its yaw there; for the embedding, three
    look at a crop around the gripper, three at crops around the objects that it is about, found
    from its first and last frame together.  Embeddings are centred on their batch before
    normalisation.
"""

import contextlib
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
        x = nn.functional.instance_norm(x)  # puts channels first, which pool ten times as slowly
        return x.contiguous(memory_format=torch.channels_last)


def convolution(inputs, outputs, norm):
    """A 3 x 3 convolution, with instance normalisation if `norm`."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), *([Normalise()] if norm else []))


def stage(inputs, outputs, norm):
    """Five convolutions and a pooling that halves the image: IMPALA's figure 3, right."""
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    blocks = [Residual(outputs, norm) for _ in range(2)]
    return nn.Sequential(convolution(inputs, outputs, norm), pool, *blocks)


ENCODERS = {  # name: channels of each stage, width of the layer after them, instance normalisation
    "impala": ((32, 32, 32), 168, False),  # 15 convolutions, 1.6 million parameters
    "large": ((64, 128, 256, 512), 256, True),  # 20 convolutions, 22 million
    "large_without_norm": ((64, 128, 256, 512), 256, False),
}


class Encoder(nn.Module):
    """An image, or an observation and its goal stacked as channels, to a vector.

    `dial` multiplies every width: 1 is the paper's.
    """

    def __init__(self, name="impala", images=1, size=128, dial=1.0, half="no"):
        super().__init__()
        self.half = half  # convolutions in bfloat16: yes, no, or auto
        channels, width, norm = ENCODERS[name]
        channels = [3 * images, *(max(4, round(dial * c)) for c in channels)]
        self.stages = nn.Sequential(*(stage(i, o, norm) for i, o in zip(channels, channels[1:])))
        for _ in channels[1:]:
            size = math.ceil(size / 2)
        self.width = max(4, round(dial * width))
        self.rest = nn.Sequential(
            nn.ELU(), nn.Flatten(), nn.Linear(channels[-1] * size**2, self.width),
            nn.LayerNorm(self.width), nn.ELU(),
        )  # fmt: skip

    def forward(self, images):
        """[B, H, W, 3 images] uint8 to [B, width]."""
        with autocast(self.half, images.device.type) as kind:
            x = images.permute(0, 3, 1, 2).to(kind)  # channels stay last in memory
            return self.rest(self.stages(x.mul_(1 / 255).sub_(0.5))).float()


@functools.cache
def quick_at_half(kind):
    """Does this machine multiply bfloat16 faster than float32?"""
    if kind == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.cuda.is_bf16_supported(including_emulation=False)


class Scale(nn.Module):
    """Features to mean 0 and variance 1, clipped to ±10, by statistics that are set once.

    Images need none.
    """

    def __init__(self, inputs):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(inputs), requires_grad=False)  # actors get it, too
        self.scale = nn.Parameter(torch.ones(inputs), requires_grad=False)

    def fit(self, features, least=0.01):
        """Take mean and spread from examples; spreads below `least` count as `least`."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(1 / features.std(0).clamp(min=least))

    def forward(self, x):
        return ((x - self.mean) * self.scale).clamp(-10, 10)


class Policy(nn.Module):
    """π(o | φ): a vector (features, or what the encoder sees) to actions in [-1, 1]."""

    def __init__(self, inputs, actions, hidden=256):
        super().__init__()
        self.mlp = mlp(inputs, actions, hidden)
        with torch.no_grad():  # begin with small actions, where tanh has a slope
            self.mlp[-1].weight *= 0.01
            self.mlp[-1].bias *= 0

    def forward(self, x):
        return self.mlp(x).tanh()


class Critic(nn.Module):
    """Z(o, a | θ): logits ω_i of the atoms z_i, p_i ∝ exp ω_i(o, a) (appendix C.1)."""

    def __init__(self, inputs, actions, atoms=101, hidden=256):
        super().__init__()
        self.mlp = mlp(inputs + actions, atoms, hidden)

    def forward(self, x, a):
        return self.mlp(torch.cat((x, a), 1))  # [B, atoms]


def layer(inputs, outputs, stride=1):
    """MILI's convolution: normalised over all channels and pixels, then ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
    return nn.Sequential(conv, nn.GroupNorm(1, outputs), nn.ReLU(inplace=True))


class Convolutions(nn.Module):
    """MILI's convolutions, shared by f and π: images to coarse and fine feature maps.

    f takes the coarse ones (what is there, and roughly where), π the fine ones (also where).
    """

    def __init__(self, channels=32, half="no"):
        super().__init__()
        self.half, self.first = half, layer(3, channels, 2)
        self.rest = nn.Sequential(*(layer(channels, channels, stride) for stride in (2, 1, 1)))
        self.what, self.where = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.both = nn.Sequential(nn.GroupNorm(1, channels), nn.ReLU(inplace=True))

    def forward(self, images):
        """[B, H, W, 3] uint8 to [B, channels, H / 4, W / 4] and [B, channels, H / 2, W / 2]."""
        with autocast(self.half, images.device.type) as kind:
            x = images.permute(0, 3, 1, 2).to(kind)  # channels stay last in memory
            fine = self.first(x.mul_(1 / 255).sub_(0.5))
            coarse = self.rest(fine)
            what = nn.functional.interpolate(self.what(coarse), fine.shape[2:])
            return coarse, self.both(self.where(fine) + what)


def cells(h, w):
    """Centres of h x w image cells, as (x, y) from -1 to 1, row by row.  [h w, 2]"""
    y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (h, w))
    return torch.stack([x.repeat(h), y.repeat_interleave(w)], 1)


def spatial_softmax(maps, queries, places=None, sharp=0, warmth=0):
    """Spatial softmax: for each query, the mean place and mean features where maps match it.

    Maps [B, C, h, w], queries [n, C] or [B, n, C], places [h w, m] of the cells (default: image
    coordinates).  Returns means [B, n, m + C] and the heatmaps' logits [B, n, h, w].  The first
    `sharp` queries average only around the hottest cell: the mean of two objects lies on neither.
    `warmth` [B, n, h w] is added to the logits.
    """
    h, w = maps.shape[2:]
    pixels = maps.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h w, C], as they lie in memory
    heat = (pixels @ queries.to(pixels.dtype).mT).mT.float() + warmth  # [B, n, h w]
    places = cells(h, w).to(heat) if places is None else places
    hot, cell = heat[:, :sharp].argmax(2, True), torch.arange(h * w, device=heat.device)
    far = torch.maximum((cell % w - hot % w).abs(), (cell // w - hot // w).abs()) > 2
    near = torch.cat([heat[:, :sharp].masked_fill(far, -torch.inf), heat[:, sharp:]], 1)
    p = near.softmax(2)
    seen = torch.cat([p @ places, (p.to(pixels.dtype) @ pixels).float()], 2)
    return seen, heat.unflatten(2, (h, w))


def heatmap_loss(heat, places):
    """Cross-entropy of heatmaps [B, n, h, w] with places [B, n, 2], each spread over four cells."""
    log_p, (h, w) = heat.flatten(2).log_softmax(2), heat.shape[2:]
    x, y = (((places[..., i] + 1) / 2 * n - 0.5).clamp(0, n - 1) for i, n in ((0, w), (1, h)))
    left, top = x.floor().clamp(max=w - 2), y.floor().clamp(max=h - 2)
    total = 0
    for right, down in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = (1 - (x - left - right).abs()) * (1 - (y - top - down).abs())
        cell = ((top + down) * w + left + right).long()  # [B, n]
        total = total - share * log_p.gather(2, cell[..., None])[..., 0]
    return total


CROP = 0.27  # crop's width over the image's: 13 of 48 pixels
SLANT = 0.77  # of kitchen.xml's camera: foreshortening of the table's depth against its width


def crop_width(width):
    """A crop's width in pixels, odd so that one is the centre."""
    return int(CROP * width) // 2 * 2 + 1


def crop(images, places, angle):
    """Crops of images [B, H, W, 3] around image coordinates places [B, 2].  [B, 3, n, n]

    Roughly as if seen from above, rotated by angles [B] about the vertical.
    """
    n = crop_width(images.shape[1])
    step = (torch.arange(n, device=places.device) - n // 2) * 2 / images.shape[1]
    c, s = angle.cos()[:, None, None], angle.sin()[:, None, None]
    right, down = step, step[:, None]
    x = places[:, 0, None, None] + c * right + s * down
    y = places[:, 1, None, None] + SLANT * (c * down - s * right)
    grid = torch.stack([x, y], 3)
    images = images.permute(0, 3, 1, 2).float() / 255 - 0.5
    return nn.functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def rotate(vector, angle):
    """Vectors [B, 2], rotated by angles [B]."""
    c, s, (x, y) = angle.cos(), angle.sin(), vector.unbind(1)
    return torch.stack([c * x - s * y, s * x + c * y], 1)


def upright_crop(images, places):
    """Crops that are not rotated; no slope leads to the places."""
    return crop(images, places.detach(), torch.zeros_like(places[:, 0]))


def crop_encoder(width, outputs=64):
    """Encoder of a crop: three convolutions, for the detail that a spatial softmax loses."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * (crop_width(width) // 2 + 1) ** 2, outputs),
        nn.LayerNorm(outputs), nn.ReLU(),
    )  # fmt: skip


OBJECTS = 2  # an episode's: the touched object, and the one it is brought to


class Embedding(nn.Module):
    """f(d): a demonstration's images and feature maps, over time, to a vector of length 1.

    One query is trained to find the gripper in each frame, two others to find, from the first and
    the last, where both objects were at first, when nothing hid them; crops are taken there.
    """

    def __init__(self, channels, frames, width, size=32, queries=8):
        super().__init__()
        self.queries, kernel = nn.Parameter(torch.randn(queries, channels)), min(5, frames)
        self.object_queries = nn.Parameter(torch.randn(OBJECTS, channels))
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.crop_encoder, self.object_encoder = crop_encoder(width), crop_encoder(width)
        self.change = nn.Sequential(nn.Conv2d(2 * channels, channels, 3, 1, 1), nn.ReLU())
        self.time = nn.Conv1d(queries * (2 + channels) + 64, 64, kernel)
        inputs = 64 * (frames - kernel + 1 + OBJECTS)
        self.rest = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, 100), nn.LayerNorm(100), nn.ReLU(),
            nn.Linear(100, size),
        )  # fmt: skip

    def vector(self, images, maps, frames):
        seen, heat = spatial_softmax(maps, self.queries, sharp=1)
        near = self.crop_encoder(upright_crop(images, seen[:, 0, :2]))
        x = torch.cat([seen.flatten(1), near], 1)
        x = x.view(-1, frames, x.shape[1]).transpose(1, 2)  # [N, features, frames]
        over_time = self.time(x).relu().flatten(1)
        ends = maps.unflatten(0, (-1, frames))[:, [0, -1]].flatten(1, 2).float()
        seen, objects = spatial_softmax(self.change(ends), self.object_queries, sharp=OBJECTS)
        first = images[::frames].repeat_interleave(OBJECTS, 0)
        near = self.object_encoder(upright_crop(first, seen[..., :2].flatten(0, 1)))
        x = torch.cat([over_time, near.view(len(objects), -1)], 1)
        return self.rest(x), (heat[:, :1], objects)

    def forward(self, images, maps, frames):
        """[N frames, H, W, 3] and [N frames, channels, h, w] to [N, size]; and heatmaps of the
        gripper [N frames, 1, h, w] and of the objects [N, 2, h, w].

        The mean over the batch, in use its running mean, is subtracted before normalisation: where
        all vectors are equal, the contrastive loss has no slope, and cannot separate them.
        """
        (vector, heat), mean = self.vector(images, maps, frames), self.mean
        if self.training:
            mean = vector.mean(0)
            self.mean.lerp_(mean.detach(), 0.05)
        return nn.functional.normalize(vector - mean, dim=1), heat


AIMS = 3  # keypoints of the policy, beside OBJECTS: the gripper soon, at its next landing, at last
LANDING = 1  # the aim around which the crop is taken


def from_gripper(seen, pose):
    """Make table positions, the first two of seen [B, n, m], relative to the gripper."""
    return torch.cat([seen[..., :2] - pose[:, None, :2], seen[..., 2:]], 2)


class Mixture(nn.Module):
    """π(a | o, f(d)): a mixture of K Gaussians over actions; keypoints; whether all is done."""

    def __init__(self, channels, places, pose=9, size=32, hidden=256, K=20, queries=8, actions=7):
        """Places [h w, 2]: each map cell's position on the table, in the units of pose[:2]."""
        super().__init__()
        side = math.isqrt(len(places))
        cell = cells(side, side)
        self.register_buffer("places", torch.cat([places, cell], 1))
        self.register_buffer("slopes", torch.cat([cell, cell.square().sum(1, True)], 1).T)
        self.crop_encoder = crop_encoder(2 * side)  # maps are half as wide as images
        self.channels, self.first, self.K, self.actions = channels, queries - AIMS, K, actions
        # first stage: queries from f(d) and the pose; second: from what these have found, too, with
        # a quadratic bias over the map, so that it can point to where the image shows nothing
        self.query = mlp(size + pose, self.first * channels, 128, 1)
        self.query_2 = mlp(self.first * (4 + channels) + size + pose, AIMS * (channels + 3), 128, 1)
        for query in (self.query, self.query_2):
            nn.init.normal_(query[-1].weight, 0, 0.1)
        inputs = queries * (4 + channels) + 64 + 2 + pose + size
        self.hidden = nn.Sequential(
            nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.ReLU(),
        )  # fmt: skip
        # from the crop and f(d) alone: given the pose, it would learn to rely on it
        self.refine = mlp(64 + size, 4, 64, 1)
        self.parts = [K, K * actions, 1, 2 * (AIMS + OBJECTS)]  # mixture, done, offsets
        self.out = nn.Linear(hidden, sum(self.parts))
        self.spread = nn.Parameter(torch.full((K, actions), -1.0))

    def forward(self, images, maps, pose, f, angle):
        """Images, maps and scaled poses of B frames, each with an embedding f [B, size].

        Returns the mixture: logits [B, K], means [B, K, 7], σ [K, 7]; the logit of being done [B];
        keypoints (AIMS, then OBJECTS): heatmaps [B, 5, h, w] and offsets from the gripper
        [B, 5, 2]; and, from a crop rotated by angle [B], the refined landing, from the gripper
        [B, 2], and cos 2x, sin 2x of the yaw x there (half a turn leaves the jaws the same) [B, 2].
        """
        known = torch.cat([f, pose], 1)
        queries = self.query(known).unflatten(1, (self.first, self.channels))
        found, heat_1 = spatial_softmax(maps, queries, self.places, OBJECTS)
        found = from_gripper(found, pose)
        queries = self.query_2(torch.cat([found.flatten(1), known], 1)).unflatten(1, (AIMS, -1))
        queries, warmth = queries.split([self.channels, 3], 2)
        aims, heat = spatial_softmax(maps, queries, self.places, AIMS, warmth @ self.slopes)
        heat = torch.cat([heat, heat_1[:, :OBJECTS]], 1)
        near = self.crop_encoder(crop(images, aims[:, LANDING, 2:4].detach(), angle))
        turned, off = self.refine(torch.cat([near, f], 1)).split(2, 1)
        turned, off = rotate(turned, 2 * angle), rotate(off, angle)
        down = aims[:, LANDING, :2].detach() + off - pose[:, :2]  # refined landing
        seen = torch.cat([from_gripper(aims, pose), found], 1).flatten(1)
        out = self.out(self.hidden(torch.cat([seen, near, down, known], 1)))
        logits, means, end, offset = out.split(self.parts, 1)
        σ = nn.functional.softplus(self.spread) + 0.05
        means, offset = means.unflatten(1, (self.K, self.actions)), offset.unflatten(1, (-1, 2))
        return (logits, means, σ), end[:, 0], (heat, offset), (down, turned)


@contextlib.contextmanager
def autocast(half, device):
    """bfloat16 autocast if `half` is yes, or auto where that is fast; yields the type."""
    half = half == "yes" or (half == "auto" and quick_at_half(device))
    with torch.autocast(device, torch.bfloat16, enabled=half):
        yield torch.bfloat16 if half else torch.float32


def count(*modules):
    """Number of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def flatten(module):
    """Move a module's parameters into one vector, their gradients into another; returns it.

    The parameters become views: Adam, a target copy and publishing weights are then one
    operation each, whatever the network.
    """
    parameters = list(module.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
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
    look, f, π = Convolutions(), Embedding(32, 40, 100), Mixture(32, torch.zeros(50 * 50, 2))
    print(
        f"MILI: {count(look):,} in the convolutions, {count(f):,} in f, {count(π):,} in the policy"
    )
    print(f"features: {count(Policy(60, 9)):,} in the policy, {count(Critic(60, 9)):,} the critic")
