import numpy as np
import pytest
import torch
from permuting import Net, made, move, normal
from refusals import refused
from torch import nn
from torch.nn import functional as F

from landscape.errors import InputError
from landscape.networks import models
from landscape.networks.matching import matching
from landscape.networks.matching.channels import channels_of
from landscape.networks.matching.identities import Classes, still


def conv(n_in, n_out, **options):
    return nn.Conv2d(n_in, n_out, 3, padding=1, **options)


def head(n, n_classes=3):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n, n_classes))


def between(*layers, n=4, n_out=None):
    """A layer between two convolutions: is it followed?"""
    return nn.Sequential(conv(2, n), *layers, conv(n_out or n, 3), nn.ReLU(), head(3))


def squeeze_and_excite(net, x):
    x = F.relu(net.conv(x))
    gate = torch.sigmoid(net.up(F.relu(net.down(x.mean((2, 3))))))
    return net.head(x * gate[:, :, None, None])


def dense(net, x):
    x = net.first(x)
    x = torch.cat([x, F.relu(net.second(x))], 1)
    return net.head(net.norm(x))


def half_rectified(net, x):
    left, right = net.conv(x).chunk(2, dim=1)
    return net.head(torch.cat([F.relu(left), right], 1))


def assigned(net, x):
    y = torch.zeros(len(x), 6, *x.shape[2:], dtype=x.dtype)
    y[:, :4] = net.conv(x)
    y += net.other(x)
    return net.head(y)


def stacked(net, x):
    return net.head(torch.stack([net.conv(x), net.other(x)]).amax(0))


def bilinear(net, x):
    return net.head((F.elu(net.conv(x)).movedim(1, -1) @ net.mixing.weight).movedim(-1, 1))


def tied(net, x):
    hidden = torch.tanh(F.linear(x.flatten(1), net.weight))
    return net.fc(F.linear(hidden, net.weight.t()))


def channels_last(net, x):
    return net.fc(net.conv(x).permute(0, 2, 3, 1).flatten(1))


def heads(net, x):
    tokens = net.embed(x.flatten(2).transpose(1, 2))
    q, k, v = (f(tokens).view(len(x), -1, 2, 3).transpose(1, 2) for f in (net.q, net.k, net.v))
    mixed = torch.softmax(q @ k.transpose(2, 3), -1) @ v
    tokens = net.norm(tokens + net.out(mixed.transpose(1, 2).reshape(len(x), -1, 6)))
    return net.fc((tokens + net.down(F.gelu(net.up(tokens)))).mean(1))


def gated_by_one(net, x):
    y = net.conv(x)
    return net.head(y * torch.sigmoid(y[:, 1:2]))


def gated_by_its_map(net, x):
    y = net.conv(x)
    return net.head(y * torch.sigmoid(y[:, 1].unsqueeze(1)))


def gated_by_its_slice(net, x):
    y = net.conv(x)
    return net.head(y * torch.sigmoid(y[:, 1:2].squeeze(1).unsqueeze(1)))


def largest(net, x):
    values, index = net.conv(x).max(1)
    return net.fc((values + index).flatten(1))


def brightest(net, x):
    return net.fc(net.conv(x).flatten(2).max(2).values)


def beside(net, x):
    return net.head(torch.cat([F.relu(net.conv(x)), net.other(x)], dim=3))


def upsampled(net, x):
    twice = torch.arange(8) // 2
    y = torch.ops.aten._unsafe_index(net.conv(x), [None, None, twice[:, None], twice])  # as some versions write it
    return net.head(y)


def crossed(net, x):
    y = net.conv(x)
    return net.fc(torch.ops.aten._unsafe_index(y, [torch.arange(len(x)), None, torch.tensor(1), None]).flatten(1))


def outer(net, x):
    x = x.mean((2, 3))
    return net.fc((net.one(x)[:, :, None] * net.two(x)[:, None, :]).flatten(1))


def tied_tokens(net, x):
    return net.fc(torch.tanh(F.linear(net.embed(x).mean(1), net.embed.weight)))


def scaled(net, x):
    norm = net.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1).expand_as(net.weight)
    return net.head(F.relu(F.conv2d(x, net.weight / norm)) * net.scale[:, None, None])


def standardised(net, x):
    rows = F.batch_norm(net.weight.reshape(1, 5, -1), None, None, training=True).reshape(net.weight.shape)
    variance, mean = torch.var_mean(net.weight, (1, 2, 3), keepdim=True)
    return net.head(F.relu(F.conv2d(net.conv(x), rows + (net.weight - mean) / (variance + 1))))


def normalised_by_hand(net, x):
    y = net.conv(x)
    variance, mean = torch.var_mean(y, (2, 3), keepdim=True)
    return net.head((y - mean) / (variance + 1).sqrt())


def token_mean(net, x):
    return net.fc(F.relu(net.hidden(net.embed(x)).amax(1)))


def cropped(net, x):
    return net.head(F.pad(net.conv(x), (0, 0, 0, 0, -1, 2)))


PARAMETERS = {"weight": nn.Parameter(torch.zeros(4, 2, 3, 3)), "scale": nn.Parameter(torch.zeros(4))}
IMAGES = (2, 2, 4, 4)
# name: network, shape of a batch, sizes of the groups by hand, operations that hold channels
NETWORKS = {
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)), IMAGES, [], ()),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)),
        (2, 4), [5, 6], (),
    ),
    "flatten": (lambda: nn.Sequential(conv(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), IMAGES, [4], ()),
    "flatten last": (lambda: Net(channels_last, conv=conv(2, 4), fc=nn.Linear(64, 3)), IMAGES, [4], ()),
    "signal": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.PReLU(4), nn.MaxPool1d(2), nn.Dropout(), nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (2, 2, 8), [4], (),
    ),
    "volume": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 4, 2), nn.BatchNorm3d(4), nn.MaxPool3d(2), nn.Upsample(scale_factor=2), nn.Flatten(),
            nn.Linear(32, 3),
        ),
        (2, 1, 3, 3, 3), [4], (),
    ),
    "upsampled": (lambda: Net(upsampled, conv=conv(2, 3), head=head(3)), IMAGES, [3], ()),
    "crossed": (lambda: Net(crossed, conv=conv(2, 4), fc=nn.Linear(16, 3)), IMAGES, [], ("_unsafe_index",)),
    "depthwise": (lambda: between(conv(4, 4, groups=4)), IMAGES, [3, 4], ()),
    "depthwise twofold": (lambda: between(conv(4, 8, groups=4), n_out=8), IMAGES, [3, 4], ()),
    "grouped": (lambda: between(conv(4, 6, groups=2), n_out=6), IMAGES, [3], ("convolution in groups",)),
    "transposed": (lambda: between(nn.ConvTranspose2d(4, 5, 3), n_out=5), IMAGES, [3, 4, 5], ()),
    "group norm": (lambda: between(nn.GroupNorm(2, 4)), IMAGES, [3], ("group norm",)),
    "one group": (lambda: between(nn.GroupNorm(1, 4)), IMAGES, [3, 4], ()),
    "instance norm": (lambda: between(nn.InstanceNorm2d(4, affine=True)), IMAGES, [3, 4], ()),
    "layer norm": (lambda: between(nn.LayerNorm([4, 4, 4])), IMAGES, [3, 4], ()),
    "neighbours": (lambda: between(nn.LocalResponseNorm(3)), IMAGES, [3], ("avg_pool3d",)),
    "in place": (
        lambda: between(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Hardswish(inplace=True)), IMAGES, [3, 4], (),
    ),
    "pads": (
        lambda: between(nn.ReflectionPad2d(1), nn.ZeroPad2d(1), nn.AvgPool2d(2), nn.Softmax(1)), IMAGES, [3, 4], (),
    ),
    "gated linear": (lambda: between(nn.GLU(1), n=8, n_out=4), IMAGES, [3, 4], ()),
    "weight norm": (lambda: between(nn.utils.parametrizations.weight_norm(conv(4, 5)), n_out=5), IMAGES, [3, 4, 5], ()),
    "weight standardised": (
        lambda: Net(standardised, conv=conv(2, 4), weight=nn.Parameter(torch.zeros(5, 4, 3, 3)), head=head(5)),
        IMAGES, [4, 5], (),
    ),
    "spectral norm of a convolution": (
        lambda: between(nn.utils.parametrizations.spectral_norm(conv(4, 5)), n_out=5), IMAGES, [3, 4, 5], (),
    ),
    "spectral norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)),
        (2, 4), [5], (),
    ),
    "cut off": (lambda: Net(cropped, conv=conv(2, 4), head=head(5)), IMAGES, [2, 3], ()),
    "gate": (
        lambda: Net(squeeze_and_excite, conv=conv(2, 4), down=nn.Linear(4, 2), up=nn.Linear(2, 4), head=head(4)),
        IMAGES, [2, 4], (),
    ),
    "dense": (
        lambda: Net(dense, first=conv(2, 4), second=conv(4, 3), norm=nn.BatchNorm2d(7), head=head(7)),
        IMAGES, [3, 4], (),
    ),
    "halves": (lambda: Net(half_rectified, conv=conv(2, 6), head=head(6)), IMAGES, [3, 3], ()),
    "assigned": (lambda: Net(assigned, conv=conv(2, 4), other=conv(2, 6), head=head(6)), IMAGES, [2, 4], ()),
    "stacked": (lambda: Net(stacked, conv=conv(2, 4), other=conv(2, 4), head=head(4)), IMAGES, [4], ()),
    "product": (
        lambda: Net(bilinear, conv=conv(2, 4), mixing=nn.Linear(5, 4, bias=False), head=head(5)), IMAGES, [4, 5], (),
    ),
    "tied": (lambda: Net(tied, weight=nn.Parameter(torch.zeros(5, 32)), fc=nn.Linear(32, 3)), IMAGES, [5], ()),
    "one channel": (lambda: Net(gated_by_one, conv=conv(2, 4), head=head(4)), IMAGES, [3], ("mul",)),
    "its map": (lambda: Net(gated_by_its_map, conv=conv(2, 4), head=head(4)), IMAGES, [3], ("select",)),
    "its slice": (lambda: Net(gated_by_its_slice, conv=conv(2, 4), head=head(4)), IMAGES, [3], ("squeeze",)),
    "largest": (lambda: Net(largest, conv=conv(2, 4), fc=nn.Linear(16, 3)), IMAGES, [], ("max",)),
    "brightest": (lambda: Net(brightest, conv=conv(2, 4), fc=nn.Linear(4, 3)), IMAGES, [4], ()),
    "beside": (lambda: Net(beside, conv=conv(2, 4), other=conv(2, 4), head=head(4)), IMAGES, [4], ()),
    "outer": (
        lambda: Net(outer, one=nn.Linear(2, 4), two=nn.Linear(2, 3), fc=nn.Linear(12, 3)), IMAGES, [], ("view",),
    ),
    "tied tokens": (lambda: Net(tied_tokens, embed=nn.Embedding(5, 4), fc=nn.Linear(5, 3)), None, [4], ()),
    "constant": (
        lambda: Net(
            lambda net, x: net.fc(net.hidden(x) * net.factors), hidden=nn.Linear(4, 3), fc=nn.Linear(3, 3),
            factors=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
        ),
        (2, 4), [], (),
    ),
    "scaled": (lambda: Net(scaled, **PARAMETERS, head=head(4)), IMAGES, [4], ()),
    "moments": (lambda: Net(normalised_by_hand, conv=conv(2, 4), head=head(4)), IMAGES, [4], ()),
    "tokens": (
        lambda: Net(token_mean, embed=nn.Embedding(5, 4), hidden=nn.Linear(4, 6), fc=nn.Linear(6, 3)), None, [4, 6], (),
    ),
    "heads": (
        lambda: Net(
            heads, embed=nn.Linear(2, 5), **{k: nn.Linear(5, 6) for k in "qkv"}, out=nn.Linear(6, 5),
            norm=nn.LayerNorm(5), up=nn.Linear(5, 7), down=nn.Linear(7, 5), fc=nn.Linear(5, 3),
        ),
        IMAGES, [5, 7], ("view",),
    ),
    "option A": (
        lambda: models.CifarResNet(3, n_blocks=1, widths=(3, 7, 12), in_channels=2), (2, 2, 8, 8),
        # within the blocks 3, 7, 12; stream of the first stage 3, added by the second 4 and by the third 5
        [3, 3, 4, 5, 7, 12], (),
    ),
    "cosine": (
        lambda: models.CifarResNet(3, n_blocks=1, widths=(2, 2, 4), in_channels=2, scale=9.0),
        (2, 2, 8, 8), [2, 2, 2, 2, 4], (),
    ),
    "downsample": (
        lambda: nn.Sequential(models.Bottleneck(2, 3, 5, 2, 1), models.Bottleneck(5, 2, 5, 1, 1), head(5)), IMAGES,
        [2, 2, 3, 3, 5], (),
    ),
    "resnext": (
        lambda: nn.Sequential(models.Bottleneck(2, 4, 5, 1, 2), head(5)), IMAGES, [5], ("convolution in groups",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [1, 3])
def test_groups_are_all_that_may_move_and_moving_them_changes_no_function(name, n):
    make, shape, sizes, held = NETWORKS[name]
    model = made(make)
    inputs = torch.arange(12).view(3, 4)[:n] % 5 if shape is None else normal(n, *shape[1:])
    if inputs.ndim == 4 and n > 1:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    traced = channels_of(model, inputs)
    assert sorted(group.size for group in traced.groups) == sizes
    assert traced.held == held
    expected = model(inputs)
    state = model.state_dict()
    for group in traced.groups:
        turned = [*range(1, group.size), 0]  # all orders are made of this and of a swap
        for order in (turned, [1, 0, *range(2, group.size)]):
            before = {k: t.clone() for k, t in state.items()}
            move(state, group, order)
            assert any(not torch.equal(before[k], state[k]) for k in state)
            torch.testing.assert_close(model(inputs), expected, rtol=1e-12, atol=1e-12)


def test_the_stream_of_the_first_stage_lies_in_the_middle_of_the_later_ones():
    groups = channels_of(made(NETWORKS["option A"][0]), normal(1, 2, 8, 8)).groups
    (stream,) = (g for g in groups if any(slot.name == "conv1.weight" for slot in g.slots))
    positions = {slot.name: slot.positions.ravel().tolist() for slot in stream.slots if slot.axis == 0}
    assert positions["bn1.running_var"] == [0, 1, 2]
    assert positions["layer2.0.bn2.bias"] == [2, 3, 4]  # 7 - 3 channels of padding, half of them before
    assert positions["layer3.0.conv2.weight"] == [4, 5, 6]  # 12 - 7, of which 2 before
    assert {(slot.name, slot.axis) for slot in stream.slots} >= {("layer1.0.conv1.weight", 1), ("linear.weight", 1)}


def test_a_flattened_channel_takes_all_its_pixels_along():
    (group,) = channels_of(made(NETWORKS["flatten"][0]), normal(1, *IMAGES[1:])).groups
    (pixels,) = (slot.positions for slot in group.slots if slot.name == "3.weight")
    assert pixels.tolist() == [[*range(16 * c, 16 * c + 16)] for c in range(4)]


def test_a_tensor_with_two_names_follows_under_both():
    def network():
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3))
        model[4].weight = model[2].weight
        return model

    (group,) = channels_of(made(network), normal(1, 4)).groups
    names = [slot.name for slot in group.slots]
    assert names.count("2.weight") == names.count("4.weight") == 2


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (
            lambda net, x: net.head(F.pixel_shuffle(net.conv(x), 2).repeat(1, 4, 1, 1)),
            ("pixel_shuffle",),
        ),
        (lambda net, x: net.head(net.conv(x).sort(1).values), ("sort",)),
        (lambda net, x: net.head(net.conv(x)) if x.mean() > 0 else x, ("match",)),
        (lambda net, x: "logits", ("str",)),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(forward, message):
    model = made(lambda: Net(forward, conv=conv(2, 4), head=head(4)))
    with refused(InputError, *message) as refusal:
        matching.groups(model, normal(2, *IMAGES[1:]))
    assert "\n" not in str(refusal.value)


def test_an_unknown_operation_may_do_anything_to_what_does_not_move():
    model = made(
        lambda: Net(lambda net, x: net.fc(net.hidden(x.sort(1).values)), hidden=nn.Linear(4, 5), fc=nn.Linear(5, 3))
    )
    assert [group.size for group in channels_of(model, normal(2, 4)).groups] == [5]


def test_places_are_one_if_their_channels_are():
    classes = Classes()
    a, b, flat = classes.new(2), classes.new(2), classes.new(6)
    classes.unite(classes.places(a, 3), flat)
    classes.unite(flat, classes.places(b, 3))
    assert [classes.find(i) for i in a] == [classes.find(i) for i in b]
    assert classes.find(flat[4]) == (classes.find(a[1])[0], (1,))
    assert not classes.fixed(a).any()


def test_different_places_cannot_be_one():
    classes = Classes()
    classes.operation = "mixing"
    a, b = classes.new(2), classes.new(2)
    classes.unite(classes.places(a, 2), classes.places(b, 2)[[1, 0, 2, 3]])
    assert classes.fixed(a).tolist() == classes.fixed(b).tolist() == [True, False]
    assert classes.held == {"mixing"}


def test_what_is_united_with_something_fixed_is_fixed_with_all_its_places():
    classes = Classes()
    a = classes.new(2)
    places = classes.places(a, 2)
    classes.unite(places[:1], still(1))
    assert classes.fixed(places).tolist() == [True, True, False, False]
    assert classes.held == set()


def test_axes_that_were_merged_come_apart_again():
    classes = Classes()
    channels = classes.new(3)
    merged = classes.merge([still(2), channels, still(4)])
    samples, found, pixels = classes.split(merged, [2, 3, 4])
    assert [classes.find(i) for i in found] == [classes.find(i) for i in channels]
    assert classes.fixed(np.concatenate([samples, pixels])).all()
    assert not classes.fixed(channels).any()
    classes.split(merged, [4, 6])
    assert classes.fixed(channels).all()
