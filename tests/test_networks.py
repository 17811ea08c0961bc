"""The networks are as large as the paper's, and see what they should."""

import pytest
import torch

import networks


@pytest.mark.parametrize(
    ("name", "millions", "convolutions", "widest"),
    [("impala", 1.6, 15, 32), ("large", 22, 20, 512), ("large_without_norm", 22, 20, 512)],
)
def test_parameters_and_convolutions_are_the_papers(name, millions, convolutions, widest):
    encoder = networks.Encoder(name, images=2, size=128)  # an observation and its goal
    total = networks.count(encoder, networks.Policy(encoder.width, 9))
    assert total / 1e6 == pytest.approx(millions, rel=0.03)
    layers = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(layers) == convolutions
    assert max(m.out_channels for m in layers) == widest
    norms = [m for m in encoder.modules() if isinstance(m, networks.Normalise)]
    assert len(norms) == (convolutions if name == "large" else 0)


def test_instance_normalisation_looks_through_contrast():
    """Each image by itself: brightness and contrast are gone after the first convolution."""
    torch.manual_seed(0)
    layer = networks.convolution(3, 8, norm=True)
    inner = torch.rand(2, 3, 16, 16)
    seen, brighter = (layer(x)[:, :, 1:-1, 1:-1] for x in (inner, inner * torch.tensor(0.5)))
    assert torch.allclose(seen, brighter, atol=0.02)
    alone = layer(inner[:1])[:, :, 1:-1, 1:-1]
    assert torch.allclose(seen[:1], alone, atol=1e-5)


@pytest.mark.parametrize("name", networks.ENCODERS)
@pytest.mark.parametrize("size", [32, 33, 48])
def test_an_encoder_takes_images_of_any_size_and_every_image_counts(name, size):
    torch.manual_seed(0)
    encoder = networks.Encoder(name, images=2, size=size, dial=0.1)
    images = torch.randint(0, 256, (2, size, size, 6), dtype=torch.uint8)
    out = encoder(images)
    assert out.shape == (2, encoder.width)
    for channel in range(6):
        other = images.clone()
        other[..., channel] = 255 - other[..., channel]
        assert (encoder(other) != out).any(1).all()


def test_the_dial_makes_everything_narrower():
    counts = [networks.count(networks.Encoder("large", dial=d, size=64)) for d in (0.25, 0.5, 1.0)]
    assert counts[0] * 8 < counts[1] * 3 < counts[2]


def test_actions_begin_small_and_stay_within_one():
    torch.manual_seed(0)
    policy = networks.Policy(60, 9)
    x = torch.randn(100, 60)
    assert policy(x).abs().max() < 0.1
    with torch.no_grad():
        policy.mlp[-1].weight *= 1e6
    assert 0.9 < policy(x).abs().max() <= 1


def test_features_come_to_mean_zero_and_variance_one():
    scale = networks.Scale(3)
    x = torch.randn(5000, 3) * torch.tensor([1.0, 30.0, 1e-5]) + torch.tensor([5.0, -100.0, 2.0])
    scale.fit(x)
    y = scale(x)
    assert torch.allclose(y.mean(0), torch.zeros(3), atol=1e-2)
    assert torch.allclose(y.std(0)[:2], torch.ones(2), atol=1e-2)
    assert y[:, 2].abs().max() < 0.1  # what hardly varies is not blown up
    assert scale(x + 1e9).max() == 10


def test_one_vector_holds_all_parameters_and_another_their_gradients():
    torch.manual_seed(0)
    module = networks.mlp(4, 2, hidden=8)
    before = [p.detach().clone() for p in module.parameters()]
    flat = networks.flatten(module)
    assert len(flat) == networks.count(module)
    for p, old in zip(module.parameters(), before):
        assert torch.equal(p, old)
    x = torch.randn(3, 4)
    plain = networks.mlp(4, 2, hidden=8)
    plain.load_state_dict(module.state_dict())
    for one in (module, plain):
        one(x).square().sum().backward()
    expected = torch.cat([p.grad.reshape(-1) for p in plain.parameters()])
    assert torch.equal(flat.grad, expected)
    out = module(x)
    flat += 1.0
    assert not torch.equal(module(x), out)


def test_a_block_adds_to_what_it_was_given():
    torch.manual_seed(0)
    block = networks.Residual(4, norm=False)
    x = torch.randn(2, 4, 6, 6)
    elu = torch.nn.functional.elu
    first, second = block.first[0], block.second[0]
    assert torch.allclose(block(x), x + second(elu(first(elu(x)))), atol=1e-6)


def test_layers_are_linear_normalised_and_bent():
    torch.manual_seed(0)
    net, x = networks.mlp(5, 3, hidden=7), torch.randn(4, 5)
    (W1, b1), (W2, b2), (W3, b3) = [(m.weight, m.bias) for m in (net[0], net[3], net[6])]
    normal = lambda h: (h - h.mean(1, keepdim=True)) / (h.var(1, False, keepdim=True) + 1e-5).sqrt()
    elu = lambda h: torch.where(h > 0, h, h.exp() - 1)
    h = elu(normal(elu(normal(x @ W1.T + b1)) @ W2.T + b2))
    assert torch.allclose(net(x), h @ W3.T + b3, atol=1e-5)


def test_images_come_to_numbers_around_zero():
    encoder, seen = networks.Encoder("impala", size=32, dial=0.1), []
    encoder.stages.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    images[0, :16] = 255
    encoder(images)
    assert seen[0].shape == (1, 3, 32, 32)
    assert seen[0].unique().tolist() == [-0.5, 0.5]
    assert (seen[0][:, :, :16] == 0.5).all()
