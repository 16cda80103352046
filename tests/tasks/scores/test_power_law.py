"""A law that was put in comes out, its interval holds it as often as it says, and too little is refused."""

import numpy as np
import pytest

from tomoglot.tasks.scores import power_law
from tomoglot.tasks.scores.power_law import CONSTANT, FLOOR, POWER, fit_power_law, floor_of

SIZES = np.array([20, 60, 200, 600])
WIDTHS = np.array([10_000, 40_000, 160_000])
SUBJECTS, PARAMETERS = np.tile(SIZES, 3), np.repeat(WIDTHS, 4)
ONE = np.full(4, 10_000)


def law(alpha=0.2, beta=0.1, a=5.0, subjects=SUBJECTS, parameters=PARAMETERS):
    return a * subjects**-alpha * parameters**-beta


def noisy(rng, values, scatter=0.03):
    return values * np.exp(scatter * rng.standard_normal(len(values)))


def test_a_law_without_noise_comes_out_exactly_and_foretells_what_was_left_out() -> None:
    found = fit_power_law(law(), SUBJECTS, PARAMETERS)
    assert found.beta is not None
    assert (found.alpha.value, found.beta.value) == pytest.approx((0.2, 0.1), abs=1e-9)
    assert np.exp(found.log_a) == pytest.approx(5.0) and found.r_squared == pytest.approx(1.0)
    assert found.at(SUBJECTS, PARAMETERS) == pytest.approx(law())
    assert found.sizes == (20, 60, 200, 600) and found.widths == 3 and found.cells == 12
    errors = {form.name: form.left_out for form in found.forms}
    assert errors[POWER] == pytest.approx(0, abs=1e-9) and errors[CONSTANT] > 0.2


def test_the_coefficients_are_those_of_least_squares_in_logarithms() -> None:
    values = noisy(np.random.default_rng(0), law())
    found = fit_power_law(values, SUBJECTS, PARAMETERS)
    design = np.stack([np.ones(12), np.log(SUBJECTS), np.log(PARAMETERS)], axis=1)
    slow = np.linalg.lstsq(design, np.log(values), rcond=None)[0]
    assert found.beta is not None
    assert [found.log_a, -found.alpha.value, -found.beta.value] == pytest.approx(list(slow))
    left = np.log(values) - design @ slow
    assert found.r_squared == pytest.approx(1 - left.var() / np.log(values).var())


def test_one_width_has_no_exponent_of_its_own() -> None:
    found = fit_power_law(noisy(np.random.default_rng(0), law(subjects=SIZES, parameters=ONE)), SIZES, ONE)
    assert found.beta is None and found.widths == 1


def test_intervals_of_few_cells_are_students() -> None:
    """Four cells leave two degrees of freedom: 4.3 standard errors and not 2."""
    values = noisy(np.random.default_rng(1), law(subjects=SIZES, parameters=ONE))
    found = fit_power_law(values, SIZES, ONE, draws=40_000)
    x, y = np.log(SIZES), np.log(values)
    left = y - np.polyval(np.polyfit(x, y, 1), x)
    error = np.sqrt((left**2).sum() / 2 / ((x - x.mean()) ** 2).sum())
    assert found.alpha.high - found.alpha.value == pytest.approx(4.303 * error, rel=0.05)
    assert found.alpha.value - found.alpha.low == pytest.approx(4.303 * error, rel=0.05)


def test_the_interval_holds_the_true_exponent_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = fit_power_law(law(), SUBJECTS, PARAMETERS).forms
    monkeypatch.setattr(power_law, "_rivals", lambda *_: forms)  # their search is slow, and is not asked for here
    rng = np.random.default_rng(3)
    held = 0
    for at in range(150):
        values = noisy(rng, law(subjects=SIZES, parameters=ONE))
        found = fit_power_law(values, SIZES, ONE, draws=500, seed=at)
        held += found.alpha.low <= 0.2 <= found.alpha.high
    assert 0.90 <= held / 150 <= 0.99


def test_what_draws_of_subjects_share_moves_no_exponent_and_what_they_do_not_widens_it() -> None:
    values, rng = law(), np.random.default_rng(0)
    shared = values * np.exp(rng.standard_normal((500, 1)))
    apart = values * np.exp(0.1 * rng.standard_normal((500, 12)))
    together = fit_power_law(values, SUBJECTS, PARAMETERS, drawn=shared).alpha
    alone = fit_power_law(values, SUBJECTS, PARAMETERS, drawn=apart).alpha
    assert together.high - together.low == pytest.approx(0, abs=1e-6)
    assert alone.high - alone.low > 0.05


def test_draws_that_have_no_logarithm_are_left_out() -> None:
    drawn = np.tile(law(), (200, 1))
    drawn[::2, 3], drawn[1::4, 5] = 0.0, np.nan
    found = fit_power_law(law(), SUBJECTS, PARAMETERS, drawn=drawn)
    assert np.isfinite([found.alpha.low, found.alpha.high]).all()


def test_a_floor_is_found_where_there_is_one_and_said() -> None:
    sizes = np.array([10, 30, 100, 300, 1000, 3000])
    values = noisy(np.random.default_rng(0), 1.0 + 8.0 * sizes**-0.7, 0.003)
    widths = np.full(6, 5_000)
    found = fit_power_law(values, sizes, widths)
    floor = next(form for form in found.forms if form.name == FLOOR)
    assert floor.floor == pytest.approx(1.0, abs=0.1)
    assert floor.worse is not None and floor.worse < -1
    assert f"does worse than '{FLOOR}' (" in found.verdict
    assert floor_of(np.log(law(subjects=sizes, parameters=widths)), sizes, widths) < 0.02


def test_a_law_beats_a_constant_only_where_subjects_matter() -> None:
    rng = np.random.default_rng(2)
    steep = fit_power_law(noisy(rng, law()), SUBJECTS, PARAMETERS)
    assert "falls with more training subjects" in steep.verdict
    assert f"does better than '{CONSTANT}'" in steep.verdict
    flat = fit_power_law(noisy(rng, law(alpha=0.0)), SUBJECTS, PARAMETERS)
    assert "do not show that" in flat.verdict and f"does better than '{CONSTANT}'" not in flat.verdict
    rising = fit_power_law(noisy(rng, law(alpha=-0.3)), SUBJECTS, PARAMETERS)
    assert "rises with more training subjects" in rising.verdict


def test_the_verdict_states_its_range_and_what_two_widths_are() -> None:
    keep = (PARAMETERS < 100_000) & (SUBJECTS < 100)
    near = np.concatenate([SUBJECTS[keep], [100, 100]]), np.concatenate([PARAMETERS[keep], [10_000, 40_000]])
    found = fit_power_law(noisy(np.random.default_rng(0), law(subjects=near[0], parameters=near[1])), *near)
    assert (
        "Sizes span 20 to 100 subjects (5-fold, less than one power of ten); nothing is known beyond" in found.verdict
    )
    assert "Two widths make a ratio" in found.verdict


def test_seeds_of_one_point_are_left_out_together() -> None:
    """Otherwise a second seed would tell what the first one was."""
    sizes, widths = np.repeat(SIZES, 2), np.full(8, 10_000)
    values = np.repeat(noisy(np.random.default_rng(0), law(subjects=SIZES, parameters=ONE), 0.2), 2)
    once = fit_power_law(values[::2], SIZES, ONE).forms[0].left_out
    assert fit_power_law(values, sizes, widths).forms[0].left_out == pytest.approx(once)


def test_too_little_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"2 distinct numbers of training subjects: through two points"):
        fit_power_law(np.ones(4), np.array([10, 10, 20, 20]), np.array([1, 2, 1, 2]))
    with pytest.raises(ValueError, match=r"1 of 4 cells have a zero_shot error that is not above zero"):
        fit_power_law(np.array([0.3, 0.2, 0.1, 0.0]), SIZES, ONE, measure="zero_shot error")
    with pytest.raises(ValueError, match="3 cells for 3 coefficients"):
        fit_power_law(np.array([3.0, 2.0, 1.5]), SIZES[:3], np.array([1, 1, 2]))
    three = fit_power_law(np.array([3.0, 2.0, 1.5]), SIZES[:3], ONE[:3])
    assert f"Too few points to try '{FLOOR}'" in three.verdict
