"""--evaluate on the command line: its defaults, and the flags that do not go with it."""

import pytest

from command_line import options


def test_default_protocol_is_2000_samples_of_50_steps():
    args = options.parse_mnist(["--evaluate", "x/d_epoch0003.safetensors"])
    assert (args.num_images, args.sampling_steps) == (2000, 50)
    assert args.out == "fig/mnist/evaluation/d_epoch0003-ddpm50"
    args = options.parse_latent(["--evaluate", "d.safetensors", "--sampler", "dpm++"])
    assert args.out == "fig/denoiser/evaluation/d-dpm++20"


@pytest.mark.parametrize(
    ("parse", "flags", "message"),
    [
        (options.parse_mnist, ["--epochs", "3"], "--epochs does not go with --evaluate"),
        (options.parse_mnist, ["--neighbours"], "--neighbours does not go with --evaluate"),
        (options.parse_latent, ["--out", "a.png"], "--evaluate makes a folder"),
        (options.parse_latent, ["--train", "--encoder", "a"], "not allowed with argument"),
        (options.parse_encoder, ["--lr", "0.1"], "--lr does not go with --evaluate"),
        (options.parse_encoder, ["--seed", "1"], "--seed does not go with --evaluate"),
        (options.parse_encoder, ["--no-flip"], "--no-flip does not go with --evaluate"),
        (options.parse_encoder, ["--gan-weight", "1"], "--gan-weight does not go with --evaluate"),
    ],
)  # fmt: skip
def test_flags_that_do_not_go_together(parse, flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(["--evaluate", "c.safetensors", *flags])
    assert message in capsys.readouterr().err
