"""Every setting of a registered function is declared once: a keyword-only parameter with a sentence in `Args`."""

from __future__ import annotations

import pytest

from rlgkd.ops.behaviour_policy import BEHAVIOURS
from rlgkd.ops.divergence import DIVERGENCES
from rlgkd.ops.gap import GAPS
from rlgkd.ops.gate import GATES
from rlgkd.ops.policy_loss import POLICY_LOSSES
from rlgkd.ops.returns import ADVANTAGES
from rlgkd.settings.fields import parameters_of

TABLES = {
    "divergence": DIVERGENCES,
    "policy_loss": POLICY_LOSSES,
    "behaviour": BEHAVIOURS,
    "advantage": ADVANTAGES,
    "gate": GATES,
    "gap": GAPS,
}
FUNCTIONS = [(kind, name) for kind, table in TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), FUNCTIONS)
def test_each_setting_has_one_sentence_with_its_range(kind: str, name: str) -> None:
    for setting in parameters_of(TABLES[kind][name]):
        sentence = setting.sentence
        assert sentence[:1].isupper() and sentence.endswith(".") and ". " not in sentence, setting
        assert setting.type is bool or any(phrase in sentence for phrase in (" in (", " in [", " or more")), setting


def test_the_settings_are_those_of_the_signatures() -> None:
    settings = {name: [setting.name for setting in parameters_of(TABLES[kind][name])] for kind, name in FUNCTIONS}
    assert {name: found for name, found in settings.items() if found} == {
        "jsd": ["beta", "normalized"],
        "skew_forward_kl": ["skew"],
        "skew_reverse_kl": ["skew"],
        "adaptive_kl": ["head"],
        "clipped": ["clip_low", "clip_high"],
        "clipped_weight": ["clip_high"],
        "teacher_mixed": ["teacher_share"],
        "interleaved": ["kept_top_k"],
        "rlsd": ["reweighting", "reweighting_clip"],
        "srpo": ["verified_from", "entropy_decay", "needs_sibling"],
        "ra_opd": ["verified_from"],
        "rg_opd": ["verified_from", "margin"],
        "sg_opd": ["verified_from", "agree_weight", "disagree_weight"],
        "r2_opd": ["verified_from", "alignment"],
        "tgopd": ["trusted_from"],
        "sdar": ["sharpness"],
        "iw_opd": ["prefix_gain"],
        "tip": ["kept_tokens"],
        "prefix": ["kept_prefix"],
        "improbable": ["kept_improbable", "by_entropy"],
        "clip": ["gap_bound"],
        "power": ["gap_exponent"],
        "sigmoid": ["gap_sharpness"],
    }
