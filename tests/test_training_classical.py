import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vdeblur_training.classical import (
    View,
    burst_accumulation,
    line,
    richardson_lucy,
    unsharp,
    wiener,
)
from vdeblur_training.look import gradients

Floats = NDArray[np.float32]


def picture() -> Floats:
    noise = np.random.default_rng(0).normal(0, 1, (128, 128)).astype(np.float32)
    smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.2), np.float32)
    return np.asarray(128 + 40 * smooth / smooth.std(), np.float32)


def blurred_view(x: float, y: float) -> View:
    seen = np.asarray(cv2.filter2D(picture(), -1, line(x, y), borderType=cv2.BORDER_REFLECT))
    luma = np.clip(np.rint(seen), 0, 255).astype(np.uint8)
    vectors = np.tile(np.array([x, y], np.float32), (8, 8, 1))
    return View(np.stack([luma] * 3), vectors)


def error(luma: Floats) -> float:
    return float(np.square(luma - picture())[32:-32, 32:-32].mean())


@pytest.mark.parametrize(("x", "y"), [(5.0, 0.0), (0.0, -3.0), (4.0, 3.0)])
def test_a_line_is_as_long_as_its_streak_and_sums_to_one(x: float, y: float) -> None:
    kernel = line(x, y).astype(np.float64)
    rows, columns = np.indices(kernel.shape) - kernel.shape[0] // 2
    assert kernel.sum() == pytest.approx(1)
    assert (kernel * columns).sum() == pytest.approx(0, abs=1e-3)
    variance = (kernel * (columns**2 + rows**2)).sum()
    assert variance == pytest.approx((x**2 + y**2) / 12, rel=0.35)


def test_with_the_true_vector_deconvolution_undoes_a_straight_streak() -> None:
    view = blurred_view(6, 2)
    before = error(view.lumas[0].astype(np.float32))
    assert error(wiener(0.01)(view)) < 0.5 * before
    assert error(richardson_lucy(15)(view)) < 0.5 * before
    assert error(unsharp(1.5, 0.5)(view)) < before


def test_a_burst_takes_its_detail_from_the_sharp_frame() -> None:
    lumas = blurred_view(8, 0).lumas.copy()
    before = error(lumas[0].astype(np.float32))
    lumas[1] = np.rint(picture()).clip(0, 255)
    assert error(burst_accumulation(11)(View(lumas, np.zeros((8, 8, 2), np.float32)))) < before / 4


def test_blur_takes_the_large_gradients() -> None:
    sharp = picture().clip(0, 255).astype(np.uint8)
    assert gradients([blurred_view(6, 0).lumas[0]]).large < gradients([sharp]).large / 2
