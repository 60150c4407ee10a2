import subprocess
import sys
from itertools import combinations

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from fedgram.comparison.colours import style_of

MAIN = ("FLoRG", "FedIT", "FeDeRA", "FFALoRA", "FedSALoRA", "FedExLoRA")
VARIANTS = (
    *(f"FLoRG-{name}" for name in ("none", "average", "top_r", "top_r_aligned", "kaiming", "svd", "identity")),
    "FeDeRA-round",
    "FedExLoRA-factored",
)
OTHERS = (
    *("FLoRA", "FlexLoRA", "FLoRA-NA", "LoRA-FAIR", "FRLoRA", "FedLoRU", "pFedLoRU", "mFedLoRU", "HetLoRA", "FedSVD"),
    *("FedRot-LoRA", "RoLoRA", "FSLoRA", "FLASC", "SLoRA", "CE-LoRA", "FL-TAC", "FedLEASE", "RAVAN", "FedDPA"),
)
KNOWN = (*MAIN, *VARIANTS, *OTHERS)

# Machado, Oliveira and Fernandes (2009): a complete deuteranopia, over linear RGB.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(1)


def lab(colour, seen_through=None):
    """CIELAB of a colour: lightness 0..100 and two axes, in which a distance of about 2 can just be seen."""
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = linear if seen_through is None else np.clip(seen_through @ linear, 0, 1)
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ seen / WHITE, (6 / 29) ** 3))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def looks(name):
    return tuple(map(str, style_of(name).values()))


def test_no_two_known_methods_look_alike():
    assert len({looks(name) for name in KNOWN}) == len(KNOWN)


def test_a_style_is_what_matplotlib_takes():
    for name in (*KNOWN, "MyMethod", "FLoRG-none-svd"):
        line = Line2D([0], [0], **style_of(name))
        assert line.get_color() == style_of(name)["color"], name


def test_main_methods_are_told_apart_without_seeing_red_from_green():
    for pair in combinations(MAIN, 2):
        a, b = (lab(style_of(name)["color"], DEUTERANOPIA) for name in pair)
        assert np.linalg.norm(a - b) > 15, pair


def test_main_methods_are_told_apart_in_grey():
    for one, other in combinations(map(style_of, MAIN), 2):
        assert one["marker"] != other["marker"]
        assert one["linestyle"] != other["linestyle"]


def test_methods_that_are_often_compared_differ_in_grey_too():
    for pair in combinations((*MAIN, *(v for v in VARIANTS if "FLoRG" in v)), 2):
        a, b = map(style_of, pair)
        lightness = abs(lab(a["color"])[0] - lab(b["color"])[0])
        assert lightness > 15 or (a["linestyle"], a["marker"]) != (b["linestyle"], b["marker"]), pair


def test_colours_stand_out_from_white():
    assert max(lab(style_of(name)["color"])[0] for name in KNOWN) < 80


def test_the_spelling_with_hyphens_is_the_same_method():
    for written, class_name in {"LoRA-FAIR": "LoRAFAIR", "FedSA-LoRA": "FedSALoRA", "FLoRG": "florg"}.items():
        assert style_of(written) == style_of(class_name)


def test_unknown_methods_look_like_no_known_one_and_variants_have_the_colour_of_theirs():
    known = {looks(name) for name in KNOWN}
    strangers = [f"Method{number}" for number in range(100)]
    assert not known & {looks(name) for name in strangers}
    assert len({looks(name) for name in strangers}) > 50
    assert style_of("FLoRG-none-svd")["color"] == style_of("FLoRG")["color"]
    assert looks("FLoRG-none-svd") not in known


def test_an_unknown_method_looks_the_same_in_every_process():
    code = "from fedgram.comparison.colours import style_of; print(style_of('MyMethod'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert printed.stdout.strip() == str(style_of("MyMethod"))
