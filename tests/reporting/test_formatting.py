import pypandoc
import pytest

from dfd_utils.reporting.formatting import (
    append_list,
    code_span,
    escape_markdown,
    format_interval,
    format_p,
    metric_label,
)


def test_intervals_have_three_decimals():
    assert format_interval(0.5, 0.25, 0.75) == "0.500 [0.250, 0.750]"
    assert format_interval(-1e-5, -0.25, 0.75) == "0.000 [-0.250, 0.750]"
    for missing in (None, float("nan")):
        assert format_interval(missing, None, None) == "too few images"


@pytest.mark.parametrize(("p", "text"), [(0.0123, "p = 0.012"), (0.5, "p = 0.5"), (0, "p < 0.001")])
def test_p_values(p, text):
    assert format_p(p) == text


def test_metrics_have_printed_names():
    assert metric_label("real_called_fake") == "false-positive rate"
    assert metric_label("balanced_accuracy") == "balanced accuracy"


def test_a_code_span_shows_any_text():
    assert code_span("a_b.jpg") == "`a_b.jpg`"
    assert code_span("a`b``c") == "```a`b``c```"
    assert code_span("`a") == "`` `a ``"
    assert code_span("a\n- b") == "`a\ufffd- b`"


@pytest.mark.parametrize("text", ["*a* _b_ [c](d) <e> &amp; $f$ `g` ~h~ www.i.j", "\\a\\*", "# b"])
def test_escaped_text_is_shown_as_it_is(text):
    html = pypandoc.convert_text(f"- {escape_markdown(text)}\n", "plain", "gfm+tex_math_dollars")
    assert html.strip() == f"- {text}"
    assert escape_markdown("EfficientNet-B0 (50 %), 2 + 2") == "EfficientNet-B0 (50 %), 2 + 2"


def test_a_list_is_appended_to_a_text():
    assert append_list("Text.", []) == "Text."
    assert append_list("Text.", ["a", "b*"]) == "Text.\n\n- a\n- b&#42;"
