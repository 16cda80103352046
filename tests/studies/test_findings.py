"""What reports say of findings: the hand-written sentences, the rules one by one, and time linear in the text."""

import hashlib
import time

import pytest
from finding_sentences import CERTAINTIES, macro_f1, path_of, read_sentences, score

from tomoglot.studies.findings import LISTS, label_report, label_sentence, mentions, mine_labels
from tomoglot.studies.organ import ORGANS
from tomoglot.studies.phantom.liver import wording as liver_wording
from tomoglot.studies.phantom.wording import ABSENT, IMPRESSIONS
from tomoglot.studies.report import read_report, spoken
from tomoglot.studies.source import Sources
from tomoglot.studies.study import Study

CHEST, BRAIN, LIVER = LISTS["chest"], LISTS["brain"], LISTS["liver"]
# As they were written: sentences and their gold labels do not change to suit a rule.
FROZEN = {
    "open": "de32cce845b28e1ea07282ae601aace747270bf2afa79b3876961ec362e10729",
    "blind": "391fdf66b22fcb8337e6cdc5ca829b59ca310ac2748ee7c6822c5f70feec4bee",
    "fresh": "2bc562c49f1e89020df9a0f9a948f43ac3c38ba84ba67e10548e105274a25475",
}


@pytest.mark.parametrize("half", FROZEN)
def test_the_hand_written_sentences_are_those_that_were_frozen(half: str) -> None:
    assert hashlib.sha256(path_of(half).read_bytes()).hexdigest() == FROZEN[half]


def test_there_are_three_hundred_sentences_and_a_hundred_an_organ() -> None:
    every = [one for half in FROZEN for one in read_sentences(half)]
    assert len({one.text for one in every}) == len(every) >= 300
    assert all(sum(one.organ == organ for one in every) >= 100 for organ in LISTS)


@pytest.mark.parametrize("half", FROZEN)
def test_the_labeller_keeps_its_scores_on_the_hand_written_sentences(half: str) -> None:
    counts = score(read_sentences(half))
    floor = 0.85 if half == "fresh" else 0.95
    assert macro_f1(counts) >= floor
    for certainty in CERTAINTIES:
        assert counts["", certainty].f1 >= floor, certainty


def test_the_lists_are_those_of_the_organs() -> None:
    assert {organ: set(names) for organ, names in LISTS.items()} == {
        organ: set(names) for organ, names in ORGANS.items()
    }


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("Pleural effusion.", "present"),
        ("No pneumothorax, pericardial or pleural effusion.", "absent"),
        ("Pleural effusion is not seen.", "absent"),
        ("Pleural effusion has resolved.", "absent"),
        ("The pleural effusion is resolving.", "present"),
        ("No change in the pleural effusion.", "present"),
        ("Pleural effusion cannot be excluded.", "uncertain"),
        ("A pleural effusion is possible.", "uncertain"),
        ("Not without a pleural effusion.", "present"),
        ("No new pleural effusion.", "uncertain"),
        ("No other pleural effusion.", None),
        ("History of pleural effusion.", None),
        ("Rule out pleural effusion.", None),
        ("No consolidation, but a pleural effusion.", "present"),
        ("No consolidation; pleural effusion.", "present"),
        ("No consolidation, there is a pleural effusion.", "present"),
        ("No consolidation with large pleural effusion.", "present"),
        ("Consolidation is stable and pleural effusion is not seen.", "absent"),
        ("Pleural effusion has been drained and is no longer seen.", "absent"),
        ("No consolidation around the pleural effusion.", "present"),
        ("No density suspicious for pleural effusion.", "absent"),
        ("No consolidation, possible pleural effusion.", "uncertain"),
        ("Consolidation or pleural effusion.", "uncertain"),
        ("PLEURAL EFFUSIONS", "present"),
        ("No evidence of pleural effusion is unlikely to matter.", "absent"),
        ("Pericardial effusion.", None),
    ],
)
def test_each_rule_of_context_does_its_work(sentence: str, said: str | None) -> None:
    assert label_sentence(sentence, ("pleural_effusion",)).get("pleural_effusion") == said


def test_spelling_number_and_hyphens_do_not_matter() -> None:
    for one, other in (
        ("Haemorrhagic tumours without oedema.", "hemorrhagic tumor without edema"),
        ("Space-occupying lesion.", "space occupying lesions"),
        ("Can't exclude an infarct.", "An infarct cannot be excluded."),
        ("The mass isn't seen.", "The mass is not seen."),
    ):
        assert label_sentence(one, BRAIN) == label_sentence(other, BRAIN) != {}


def test_what_is_healthy_says_absent_and_its_denial_present() -> None:
    assert label_sentence("Heart size is normal.", CHEST) == {"cardiomegaly": "absent"}
    assert label_sentence("Midline structures are not central.", BRAIN) == {"midline_shift": "present"}
    assert label_sentence("Heart size is borderline.", CHEST) == {"cardiomegaly": "uncertain"}


def test_a_denied_lesion_denies_its_kinds_and_a_lesion_names_none() -> None:
    assert label_sentence("A focal liver lesion.", LIVER) == {}
    assert set(label_sentence("No focal liver lesion.", LIVER)) == set(LIVER) - {"normal"}


REPORT = """INDICATION: pleural effusion, lung nodule.
COMPARISON: Emphysema was seen.

FINDINGS: No pleural effusion. A nodule in the right upper lobe may be present. The heart is enlarged.

IMPRESSION: 1. Cardiomegaly. 2. No consolidation."""


def test_only_findings_and_impression_are_read() -> None:
    told = label_report(REPORT, CHEST)
    assert told["pleural_effusion"] == "absent" and told["lung_nodule"] == "uncertain"
    assert told["cardiomegaly"] == "present" and told["consolidation"] == "absent"
    assert told["emphysema"] == "not_mentioned"
    assert tuple(told) == CHEST


def test_without_headings_all_is_read_but_the_paragraph_under_another_heading() -> None:
    assert label_report("Emphysema. No nodule.", CHEST)["emphysema"] == "present"
    told = label_report("INDICATION: Nodule.\n\nEmphysema.", CHEST)
    assert told["lung_nodule"] == "not_mentioned" and told["emphysema"] == "present"
    assert spoken("INDICATION: Nodule.\n\nEmphysema.").strip() == "Emphysema."


def test_present_wins_over_uncertain_and_that_over_absent() -> None:
    sentences = ["No mass.", "Possible mass.", "A mass."]
    assert label_report(" ".join(sentences), ["mass"]) == {"mass": "present"}
    assert label_report(" ".join(sentences[:2]), ["mass"]) == {"mass": "uncertain"}
    assert label_report(sentences[0], ["mass"]) == {"mass": "absent"}
    assert label_report("Nothing to say.", ["mass"]) == {"mass": "not_mentioned"}


def test_normal_is_said_of_the_whole_and_only_where_nothing_is_found() -> None:
    assert label_report("Normal MRI of the brain.", BRAIN)["normal"] == "present"
    # The mass is not asked for, and still the brain is not normal.
    assert label_report("A mass. No acute intracranial abnormality.", ["normal", "infarct"])["normal"] == "absent"
    assert label_report("Possible mass. Normal MRI of the brain.", BRAIN)["normal"] == "uncertain"
    assert label_report("The cerebellum is normal.", BRAIN)["normal"] == "not_mentioned"
    assert label_report("No focal liver lesion.", LIVER)["normal"] == "present"


def test_a_mention_quotes_its_words_and_why() -> None:
    (found,) = mentions("There is no evidence of a large mass here.", ["mass"])
    assert (found.finding, found.certainty, found.words, found.because) == ("mass", "absent", "mass", "no evidence of")
    assert found.sentence.startswith("There is no")


def test_an_unknown_finding_is_named() -> None:
    with pytest.raises(ValueError, match="gout"):
        label_report("Gout.", ["gout"])


def test_wordings_of_the_simulated_cohorts_are_understood() -> None:
    for finding, phrases in ABSENT.items():
        for phrase in phrases:
            assert label_sentence(f"No {phrase}.", BRAIN).get(finding) == "absent", phrase
    words = {"place": "left frontal lobe", "aspect": "solid", "age": "acute ", "grade": "mild", "side": "left"}
    words |= {name.capitalize(): word for name, word in words.items()}
    for finding, wordings in IMPRESSIONS.items():
        for wording in wordings:
            assert label_sentence(wording.format(**words), BRAIN).get(finding) == "present", wording
    for finding, names in liver_wording.NAMES.items():
        for name in names:
            assert label_sentence(f"Most likely {name} in segment II.", LIVER).get(finding) == "present", name


@pytest.mark.parametrize(
    "unit", ["no ", "no nodule ", "nodule or ", "no, ", "heart ", "pleural ", "is not ", "no.nodule.", "a" * 997 + " "]
)
def test_a_hostile_text_is_read_in_time_linear_in_its_length(unit: str) -> None:
    label_sentence("warm", CHEST)

    def seconds(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        times = []
        for _ in range(2):
            begun = time.thread_time()
            label_report(text, CHEST)
            times.append(time.thread_time() - begun)
        return min(times)

    # Four times the text: 4 where linear, 16 where quadratic. The floor keeps the clock's own steps out.
    assert seconds(16_000) < 8 * max(seconds(4_000), 0.002)


def test_a_megabyte_is_read() -> None:
    text = f"no nodule, {'x' * 989} " * 1000
    assert len(text) >= 1_000_000
    assert label_report(text, ["lung_nodule"])["lung_nodule"] == "absent"


def test_mined_labels_never_take_the_place_of_given_ones_and_are_named() -> None:
    report = read_report("FINDINGS: A mass. No infarct. Possible haemorrhage.")
    studies = [
        Study(subject="a", study="1", report=report, labels={"infarct": 1.0}),
        Study(subject="b", study="1", labels={"mass": 1.0}),
    ]
    first, second = mine_labels(Sources(studies=studies, rejected=[]), BRAIN).studies
    assert first.labels == {"infarct": 1.0, "mass": 1.0, "normal": 0.0}
    assert first.labels_mined == ("mass", "normal")
    assert second.labels == {"mass": 1.0} and second.labels_mined == ()
