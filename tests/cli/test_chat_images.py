"""`triptych chat` with images in its answers: saved to files, and shown again in later turns."""

import json
from pathlib import Path

import pytest
from PIL import Image
from scripted_chat import IMAGE, Script
from tolerances import images_agree

FAST = ["--num-inference-steps", 2, "--decoder-num-inference-steps", 2, "--seed", 3]


@pytest.fixture
def script(pipe, tokenizer, monkeypatch):
    answers = {"draw it": ["here:", IMAGE, "done"], "and now?": ["so"], "draw": [IMAGE]}
    written = Script(tokenizer, answers)
    monkeypatch.setattr(pipe.model.understanding.vlm, "generate_text", written)
    return written


def drawn(pipe, question):
    fast = {"num_inference_steps": 2, "decoder_num_inference_steps": 2}
    return pipe.chat(question, seed=3, **fast).images[0]


def test_an_image_of_an_answer_is_a_file_whose_path_is_printed(triptych, pipe, script):
    status, out, err = triptych("chat", "draw it", "-o", "made", *FAST)
    assert (status, out.splitlines()) == (0, ["here:", "made/00000.png", "done"]), err
    assert images_agree(Image.open("made/00000.png"), drawn(pipe, "draw it"))
    assert triptych("chat", "draw", *FAST)[1] == "out/chat/00000.png\n"
    assert triptych("chat", "draw", *FAST)[1] == "out/chat/00001.png\n"  # none is written over


def test_a_conversation_goes_on_from_its_image(triptych, script, tokenizer):
    status, out, err = triptych("chat", "-o", "made", *FAST, stdin="draw it\nand now?\ndraw\n")
    assert status == 0, err
    assert out == "here:\nmade/00000.png\ndone\nso\nmade/00001.png\n"
    shown = tokenizer.decode(script.calls[2][0][0]).replace("<|image_pad|>" * 9, "<|9|>")
    assert "here:[IMG]<|vision_start|><|9|><|vision_end|>done<|im_end|>\n" in shown


def test_json_lines_have_the_paths_and_may_give_them_back(triptych, script):
    line = json.dumps({"id": "a", "question": "draw it"})
    status, out, err = triptych("chat", "--jsonl", "-", "-o", "made", *FAST, stdin=line)
    assert status == 0, err
    answer = json.loads(out)
    image = {"type": "image", "image": "made/00000.png"}
    assert answer["content"] == ["here:", image, "done"] and answer["answer"] == "here:\ndone"
    talk = [
        {"role": "user", "content": "draw it"},
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": "and now?"},
    ]
    line = json.dumps({"messages": talk})
    status, out, err = triptych("chat", "--jsonl", "-", stdin=line)
    assert json.loads(out)["answer"] == "so" and "content" not in json.loads(out), err


def test_no_image_where_none_is_wanted_or_none_can_be_written(triptych, script):
    assert triptych("chat", "draw it", "--max-images", 0)[1] == "here:done\n"
    assert not Path("out").exists()
    Path("file").write_text("")
    status, _, err = triptych("chat", "draw", "-o", "file/made", *FAST)
    assert status == 2 and "cannot be written to file/made" in err


def test_a_missing_image_of_a_message_is_one_sentence(triptych, script):
    talk = [{"role": "user", "content": "draw it"}]
    talk += [{"role": "assistant", "content": [{"type": "image", "image": "gone.png"}]}, talk[0]]
    status, _, err = triptych("chat", "--jsonl", "-", stdin=json.dumps({"messages": talk}))
    assert status == 1 and "gone.png does not exist" in err and err.count("\n") == 1
