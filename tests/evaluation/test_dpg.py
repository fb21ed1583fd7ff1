"""DPG-Bench: scores computed by hand, dependencies, and names of all unscored items."""

import json

import pytest
from PIL import Image

from triptych.evaluation import dpg
from triptych.evaluation.dpg.questions import Proposition, read_answer, resolve_dependencies
from triptych.evaluation.judges.base import AnswerCache, Judge, JudgeFailed
from triptych.utils.errors import UserError

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
HEAD = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,"
HEAD += "tuple,question_natural_language\n"
ROWS = """a,t,k,1,0,entity,whole,entity - whole (thing),Is it red?
a,t,k,2,1,attribute,colour,"attribute - colour (thing, blue)",Is it blue?
a,t,k,3,"1, 2",relation,spatial,relation - spatial (thing),Is it red?
b,t,k,1,0,entity,whole,entity - whole (thing),Is it green?
b,t,k,2,0,global,,global - (thing),Is it mumbled?
c,t,k,1,0,other,count,other - count (thing),Is it lost?
"""


class Looks(Judge):
    """Says whether the image has the colour of the question; mumbles and gets lost if told so."""

    name = "eyes"

    def __init__(self):
        self.asked = []

    def answer(self, image, question):
        self.asked.append(question)
        word = question.split("?")[0].split()[-1]
        if word == "lost":
            raise JudgeFailed("no answer")
        if word == "mumbled":
            return "Yes and no."
        return "Yes." if image.getpixel((0, 0)) == COLOURS[word] else "no"


@pytest.fixture
def files(tmp_path):
    """(folder, keyword arguments of `score`): prompts a, b and c with 2x2 grids of 8 pixels."""
    (tmp_path / "questions.csv").write_text(HEAD + ROWS)
    prompts = [{"item_id": name, "prompt": f"thing {name}"} for name in "abc"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    folder = tmp_path / "grids"
    folder.mkdir()
    write(folder, "a", "red", "blue", "red", "green")
    write(folder, "b", "green", "green", "green", "red")
    write(folder, "c", "red", "red", "red", "red")
    return folder, {
        "questions": tmp_path / "questions.csv",
        "prompts": tmp_path / "prompts.jsonl",
        "answers": tmp_path / "answers.jsonl",
    }


def write(folder, name, *colours, side=8):
    tiles = [Image.new("RGB", (side, side), COLOURS[colour]) for colour in colours]
    dpg.join_grid(tiles).save(dpg.grid_path(folder, name))


def test_scores_are_those_worked_out_by_hand(files):
    folder, options = files
    report = dpg.score(folder, Looks(), **options)
    # a: red tiles: yes, no, and the third hangs on the second: 1/3. Blue: the second hangs on the
    # first, which is no: 0. Green: 0. b: of one question that is answered: 1, 1, 1, 0.
    assert [item.get("score") for item in report.items] == [pytest.approx(1 / 6), 0.75, None]
    assert report.scores["overall"] == pytest.approx((1 / 6 + 0.75) / 2)
    assert report.numbers == {
        "overall": 2,
        "attribute": 4,
        "entity": 8,
        "relation": 4,
    }
    # categories are of the answers alone
    assert report.scores["entity"] == 5 / 8 and report.scores["attribute"] == 1 / 4
    assert report.scores["relation"] == 1 / 2
    assert report.settings["tile"] == 8
    assert "eyes; not the official" in report.judged_by


def test_answers_that_are_neither_yes_nor_no_are_counted_and_not_scored(files):
    folder, options = files
    report = dpg.score(folder, Looks(), **options)
    assert report.counts["judge_failed"] == 1 and report.counts["scored"] == 2
    assert report.counts["questions"] == 12 + 8 + 4 and report.counts["questions_failed"] == 4 + 4
    a, b, c = report.items
    assert "note" in a and not a["note"]
    assert b["note"] == "4 of 8 questions answered neither yes nor no"
    assert c["state"] == "judge_failed" and "global" not in report.scores


@pytest.mark.parametrize(
    ("answer", "meant"),
    [
        ("yes", True),
        (" Yes.\n", True),
        ("**No**", False),
        ("no!", False),
        ("Yes, it is.", None),
        ("not at all", None),
        ("yes no", None),
        ("", None),
    ],
)
def test_an_answer_is_yes_or_no_or_nothing(answer, meant):
    assert read_answer(answer) is meant


def test_children_of_unknown_answers_are_unknown_unless_no():
    chain = [Proposition(n, (n - 1,) if n > 1 else (), "entity", "?") for n in (1, 2, 3)]
    assert resolve_dependencies(chain, {1: True, 2: True, 3: True}) == {1: True, 2: True, 3: True}
    assert resolve_dependencies(chain, {1: False, 2: True, 3: True}) == {
        1: False,
        2: False,
        3: False,
    }
    assert resolve_dependencies(chain, {1: None, 2: True, 3: False}) == {1: None, 2: None, 3: False}
    assert resolve_dependencies(chain, {1: None, 2: False, 3: True}) == {
        1: None,
        2: False,
        3: False,
    }


def test_interrupted_scoring_resumes(files):
    folder, options = files

    class Stops(Looks):
        def answer(self, image, question):
            if len(self.asked) == 5:
                raise KeyboardInterrupt
            return super().answer(image, question)

    with pytest.raises(KeyboardInterrupt):
        dpg.score(folder, Stops(), **options)
    with options["answers"].open("a") as file:
        file.write('{"key": "cut o')
    again = Looks()
    report = dpg.score(folder, again, **options)
    whole = Looks()
    assert report.to_json() == dpg.score(folder, whole, **options | {"answers": None}).to_json()
    assert len(again.asked) == len(whole.asked) - 5
    last = Looks()
    dpg.score(folder, last, **options)
    assert len(last.asked) == 1  # of all, only the failure is asked again, of four equal tiles


def test_answers_of_other_judges_images_and_questions_are_not_taken(tmp_path):
    memory, judge, other = AnswerCache(tmp_path / "a.jsonl"), Looks(), Looks()
    other.name = "other eyes"
    red, blue = (Image.new("RGB", (2, 2), COLOURS[name]) for name in ("red", "blue"))
    memory.ask(judge, [(red, "red?")])
    assert memory.ask(judge, [(red, "red?"), (blue, "red?"), (red, "blue?")]) == [
        "Yes.",
        "no",
        "no",
    ]
    memory.ask(other, [(red, "red?")])
    assert len(judge.asked) == 3 and len(other.asked) == 1
    (tmp_path / "a.jsonl").write_text("hello\n")
    with pytest.raises(UserError, match="line 1 of .* is no answer"):
        AnswerCache(tmp_path / "a.jsonl")


def test_images_of_the_wrong_size_or_number_are_named(files):
    folder, options = files
    write(folder, "a", "red", "red", "red", "red", side=4)
    write(folder, "stray", "red", "red", "red", "red")
    dpg.grid_path(folder, "c").unlink()
    report = dpg.score(folder, Looks(), **options)
    states = {item["key"]: (item["state"], item["note"]) for item in report.items}
    assert states["a"] == ("wrong_size", "a.png has 8x8 pixels, not 16x16")
    assert states["c"] == ("missing", "there is no c.png")
    assert states["stray.png"][0] == "extra"
    assert report.counts["expected"] == 3 and report.counts["scored"] == 1
    with pytest.raises(UserError, match="16x16 pixels, which are no 3x3 square tiles"):
        dpg.score(folder, Looks(), **options, grid=3)
    given = dpg.score(folder, Looks(), **options, tile=4)
    assert given.counts["wrong_size"] == 1 and given.items[0]["state"] == "scored"


def test_bad_files_are_refused_in_one_sentence(files, tmp_path):
    folder, options = files
    with pytest.raises(UserError, match="the DPG questions: .*nowhere.csv does not exist"):
        dpg.score(folder, Looks(), **options | {"questions": tmp_path / "nowhere.csv"})
    bad = tmp_path / "bad.csv"
    for text, said in {
        "item_id,text\n": "has no column dependency",
        HEAD + "a,t,k,x,0,e,w,e - w (t),Is it red?\n": "line 2 of .* is not a question",
        HEAD + "a,t,k,1,0,e,w,e - w (t),Is it red?\n": "asks nothing about 2 of 3 prompts.* b",
        HEAD + "a,t,k,1,2,e,w,e,Q?\na,t,k,2,1,e,w,e,Q?\n": "depends on itself",
        HEAD + "a,t,k,1,0,e,w,e,Q?\na,t,k,1,0,e,w,e,Q?\n": "numbers two propositions of a alike",
    }.items():
        bad.write_text(text)
        with pytest.raises(UserError, match=said):
            dpg.score(folder, Looks(), **options | {"questions": bad})


def test_the_packaged_prompts_are_the_published_ones():
    prompts = dpg.read_prompts()
    assert len({entry["item_id"] for entry in prompts}) == 1065
    assert all(entry["prompt"].strip() for entry in prompts)


def test_a_model_of_ours_can_judge():
    from types import SimpleNamespace

    from triptych.evaluation.judges.local import PipelineJudge

    class Pipeline:
        name = "tiny"
        sizes = []

        def chat_batch(self, conversations, max_new_tokens, max_images):
            assert max_images == 0
            self.sizes.append(len(conversations))
            texts = [turn["content"][1]["text"] for (turn,) in conversations]
            return [SimpleNamespace(text=text.upper()) for text in texts]

    judge = PipelineJudge(Pipeline(), batch=2)
    image = Image.new("RGB", (2, 2))
    assert AnswerCache().ask(judge, [(image, word) for word in "abcab"]) == list("ABCAB")
    assert Pipeline.sizes == [2, 1]
