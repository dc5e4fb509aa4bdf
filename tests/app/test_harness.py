"""The routed model in lm-evaluation-harness answers as the routed pass, plain logits and decoding do."""

from __future__ import annotations

import json
import math
import re
import tomllib
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="lm_eval is not installed (pip install 'offramp[eval]')")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from offramp.app.cli import main
from offramp.app.harness import RoutedLM
from offramp.app.project import open_project
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.tokenizers import chat_tokenizer
from offramp.errors import UserError
from offramp.routing.executor import Executor
from offramp.routing.generate import decode, generate
from tests.conftest import REPOSITORY
from tests.fixtures.checkpoints import save_checkpoint
from tests.fixtures.small_project import make_project

PAIRS = [
    ("Fellow citizens of the Senate", " and of the House"),
    ("", "Fellow citizens"),
    ("The state of the Union is ", "strong"),
    ("Congress " * 60, "of the United States"),
    ("Fellow", " citizens of the Senate and House of Representatives"),
]
TEXTS = ["Fellow citizens of the Senate and House of Representatives. " * 4, "Gentlemen:", ""]


@pytest.fixture(scope="module")
def project(addresses, tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    make_project(root, addresses)
    return root


@pytest.fixture(scope="module")
def routed(project):
    return RoutedLM(str(project), batch_size=3)


@pytest.fixture(scope="module")
def full(project):
    return RoutedLM(str(project), full=True, batch_size=2)


def requests(kind, arguments):
    return [Instance(kind, {}, given, place) for place, given in enumerate(arguments)]


def tokens_of(lm, context, continuation):
    """Input, targets and the number of scored tokens; the end token stands for an empty context."""
    before = lm.tok_encode(context.rstrip()) if context else [lm.eot_token_id]
    whole = lm.tok_encode(context + continuation) if context else before + lm.tok_encode(continuation)
    text = whole[-lm.max_length - 1 :]
    return torch.tensor([text[:-1]]), torch.tensor([text[1:]]), len(whole) - len(before)


def test_likelihoods_are_those_of_the_routed_pass_over_each_text_alone(routed):
    routed.exits_taken[:] = 0
    scores = routed.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    exits = np.zeros(2, int)
    for (log_p, greedy), pair in zip(scores, PAIRS):
        tokens, targets, scored = tokens_of(routed, *pair)
        alone = Executor(routed.model, "propagate").run(tokens, targets, routed.policy)
        assert log_p == pytest.approx(-alone.loss[0, -scored:].sum().item(), rel=1e-4)
        assert greedy == torch.equal(alone.argmax[0, -scored:], targets[0, -scored:])
        exits += np.bincount(alone.exit[0, -scored:], minlength=2)
    assert routed.exits_taken.tolist() == exits.tolist() and exits.min() > 0


@torch.no_grad()
def test_where_nobody_leaves_they_are_those_of_the_plain_model(full):
    scores = full.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    for (log_p, _), pair in zip(scores, PAIRS):
        tokens, targets, scored = tokens_of(full, *pair)
        plain = (
            full.model.logits(1, full.model(tokens)[1])
            .log_softmax(-1)
            .gather(-1, targets[..., None])[0, -scored:]
        )
        assert log_p == pytest.approx(plain.sum().item(), rel=1e-4)
    assert full.exits_taken[0] == 0


def test_what_the_model_would_say_is_greedy(routed, full):
    for lm in (routed, full):
        context = lm.tok_encode("Fellow citizens of the Senate")
        if lm.policy is None:
            (said,) = generate(decode(lm.model, [context], 4), 1)
        else:
            (said,) = generate(decode(lm.model, [context], 4, lm.policy, route_prompt=True), 1)
        other = [*said.tokens[:3], (said.tokens[3] + 1) % 400]
        scores = lm._loglikelihood_tokens(
            [("", context, said.tokens), ("", context, other)], disable_tqdm=True
        )
        assert [greedy for _, greedy in scores] == [True, False]


def test_a_context_of_whitespace_is_an_empty_one_and_what_is_scored_is_all_after_the_end_token(routed):
    """lm_eval moves the whitespace to the continuation, which leaves the context without tokens."""
    ask = lambda *pairs: routed.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)  # noqa: E731
    assert ask((" ", "Fellow citizens"), ("\n", "Congress")) == ask(
        ("", " Fellow citizens"), ("", "\nCongress")
    )
    assert all(log_p < -1 for log_p, _ in ask((" ", "a"), (" ", "Fellow citizens")))


def test_a_continuation_without_a_token_of_its_own_is_refused_by_its_texts(routed):
    """The last token of a context may take up all that follows."""
    with pytest.raises(UserError, match=r"the continuation of \('Fellow', 's'\) has no token of its own"):
        routed._loglikelihood_tokens([(("Fellow", "s"), [5, 6], [])], disable_tqdm=True)


def test_batch_sizes_are_given_as_to_lm_eval(project):
    sizes = [RoutedLM(str(project), batch_size=given).batch_size for given in ("auto", "auto:4", "8", 3)]
    assert sizes == [*[open_project(project).params.routing.batch_size] * 2, 8, 3]


@pytest.mark.parametrize("given", [0, "0", "-2", "many"])
def test_a_batch_size_that_is_none_is_refused(project, given):
    with pytest.raises(UserError, match=f"batch_size = {given!r}: give a number of at least 1, or auto"):
        RoutedLM(str(project), batch_size=given)


def test_a_whole_text_is_scored_once_per_token_in_windows(routed):
    log_ps = routed.loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,) for text in TEXTS]), disable_tqdm=True
    )
    assert log_ps[2] == 0
    for text, log_p in zip(TEXTS[:2], log_ps):
        ids, total = [routed.eot_token_id, *routed.tok_encode(text)], 0.0
        for start in range(
            0, len(ids) - 1, 32
        ):  # the last window is as long as the others and scores what is new
            end = min(start + 32, len(ids) - 1)
            window = torch.tensor([ids[max(0, end - 32) : end + 1]])
            alone = Executor(routed.model).run(
                window[:, :-1].contiguous(), window[:, 1:].contiguous(), routed.policy
            )
            total -= alone.loss[0, start - end :].sum().item()
        assert log_p == pytest.approx(total, rel=1e-4)


def test_generation_is_that_of_decode_up_to_the_first_stop(routed):
    contexts = ["Fellow citizens", "The state of the Union", "Congress"]
    whole = []
    for context in contexts:
        prompt = routed.tok_encode(context)
        (generation,) = generate(
            decode(routed.model, [prompt], 12, routed.policy, stop={routed.eot_token_id}), 1
        )
        whole.append(
            routed.project.decode(
                prompt[-1], [token for token in generation.tokens if token != routed.eot_token_id]
            )
        )

    def ask(**settings):
        asked = requests("generate_until", [(context, settings) for context in contexts])
        return routed.generate_until(asked, disable_tqdm=True)

    assert ask(max_gen_toks=12) == whole
    stop = whole[1][3:5]
    assert ask(max_gen_toks=12, until=[stop, "\x00"]) == [text.split(stop)[0] for text in whole]


def test_sampling_follows_the_task_and_repeats(routed):
    sample = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_gen_toks": 8}

    def ask(settings):
        asked = requests("generate_until", [("Fellow citizens", settings)])
        return routed.generate_until(asked, disable_tqdm=True)

    assert ask(sample) == ask(sample) != ask({"max_gen_toks": 8})


@pytest.mark.parametrize(
    "ask, message",
    [
        (
            lambda lm: lm.loglikelihood(
                requests("loglikelihood", [("a", " Congress" * 40)]), disable_tqdm=True
            ),
            r"a continuation of \d+ tokens does not fit the model's window of 32",
        ),
        (
            lambda lm: lm.generate_until(
                requests("generate_until", [("a", {"max_gen_toks": 32})]), disable_tqdm=True
            ),
            r"max_gen_toks = 32 leaves no room .* --gen_kwargs max_gen_toks=16",
        ),
        (lambda lm: lm.project.policy(1.5), r"threshold = 1\.5: give a number from 0 to 1"),
        (lambda lm: lm.project.policy("half"), "threshold = 'half': give a number"),
    ],
)
def test_what_cannot_be_done_is_said(routed, ask, message):
    with pytest.raises(UserError, match=message):
        ask(routed)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks as files: one of multiple choice, one of whole texts."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = [
        {"question": "Fellow citizens of the", "choices": ["Senate", "zebra", "House"], "answer": 0},
        {"question": "The state of the", "choices": ["Union", "Congress"], "answer": 1},
        {"question": "We the people of the United", "choices": ["Nations", "States"], "answer": 1},
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2]))

    def task(name, file, lines):
        (folder / f"{name}.yaml").write_text(
            "\n".join(
                [
                    f"task: {name}",
                    "dataset_path: json",
                    "dataset_kwargs:",
                    "  data_files:",
                    f"    test: {folder / file}",
                    "test_split: test",
                    *lines,
                ]
            )
            + "\n"
        )

    task(
        "choices",
        "questions.jsonl",
        [
            "output_type: multiple_choice",
            'doc_to_text: "{{question}}"',
            'doc_to_choice: "{{choices}}"',
            'doc_to_target: "{{answer}}"',
            "metric_list:",
            "  - metric: acc",
        ],
    )
    task(
        "texts",
        "texts.jsonl",
        [
            "output_type: loglikelihood_rolling",
            'doc_to_text: ""',
            'doc_to_target: "{{text}}"',
            "metric_list:",
            "  - metric: word_perplexity",
        ],
    )
    return folder, questions


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def test_the_harness_reports_what_the_likelihoods_say(routed, tasks, offline):
    folder, questions = tasks
    results = simple_evaluate(
        routed,
        tasks=["choices", "texts"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    right = 0
    for row in questions:
        pairs = [(row["question"], " " + choice) for choice in row["choices"]]
        scores = [
            log_p for log_p, _ in routed.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
        ]
        right += scores.index(max(scores)) == row["answer"]
    assert results["choices"]["acc,none"] == pytest.approx(right / 3)
    total = sum(
        routed.loglikelihood_rolling(
            requests("loglikelihood_rolling", [(text,) for text in TEXTS[:2]]), disable_tqdm=True
        )
    )
    words = sum(len(re.split(r"\s+", text)) for text in TEXTS[:2])  # as lm_eval counts them
    assert results["texts"]["word_perplexity,none"] == pytest.approx(math.exp(-total / words), rel=1e-6)


@pytest.mark.slow
def test_the_command_passes_its_options_on(project, tasks, offline, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["offramp"])
    arguments = [
        "--tasks",
        "choices",
        "--include_path",
        str(tasks[0]),
        "--model_args",
        f"root={project},threshold=0.9",
        "--batch_size",
        "4",
    ]
    assert main(["lm-eval", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "offramp (" in shown and "'threshold': 0.9" in shown and "|choices|" in shown


def test_lm_eval_finds_the_model_as_a_plugin():
    """By the entry point that versions after 0.4.13 look for."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"][
        "lm_eval.models"
    ]
    assert EntryPoint("offramp", declared["offramp"], "lm_eval.models").load() is RoutedLM


def test_it_is_said_how_many_requests_lost_how_many_tokens(routed, caplog):
    """A score of three examples in a window that holds half of one is no score of three examples."""
    shot = "Fellow citizens of the Senate and House of Representatives. " * 3
    size, window = len(routed.tok_encode(shot * 3 + "Congress")), routed.max_length
    routed.loglikelihood(
        requests("loglikelihood", [(shot * 3, "Congress"), ("We", " the")]), disable_tqdm=True
    )
    beyond = size - window - 1
    said = f"1 of 2 requests do not fit the window of {window} tokens and lost {beyond} tokens from the"
    assert said in caplog.text
    caplog.clear()
    routed.loglikelihood(requests("loglikelihood", PAIRS[:1]), disable_tqdm=True)
    assert "do not fit" not in caplog.text
    settings = {"until": ["\n"], "max_gen_toks": 4}
    routed.generate_until(requests("generate_until", [(shot * 3, settings)]), disable_tqdm=True)
    lost = len(routed.tok_encode(shot * 3)) + 4 - window
    assert f"1 of 1 requests do not fit the window of {window} tokens and lost {lost} tokens" in caplog.text


def test_a_model_without_a_chat_template_says_so_in_one_line(project, tasks, offline, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["offramp"])
    arguments = ["--tasks", "choices", "--include_path", str(tasks[0]), "--model_args", f"root={project}"]
    assert main(["lm-eval", *arguments, "--apply_chat_template"]) == 2
    assert "error: --apply_chat_template: a native model has no chat template" in capsys.readouterr().err


def test_chats_are_those_of_the_checkpoint_with_its_special_tokens(project, tmp_path):
    """A special token in a text is plain text elsewhere."""
    folder = save_checkpoint(tmp_path / "tiny")
    checkpoint = Checkpoint(str(folder))
    with pytest.raises(UserError, match=r"its tokenizer has no chat template \(chat_template\.jinja"):
        chat_tokenizer(checkpoint)
    each = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    template = each + "{% if add_generation_prompt %}A:{% endif %}"
    (folder / "chat_template.jinja").write_text(template)
    lm = RoutedLM(str(project))
    plain = lm.tok_encode("Fellow<eos>")
    assert lm.eot_token_id not in plain
    vars(lm)["_chat_tokenizer"] = chat_tokenizer(checkpoint)
    assert lm.chat_template(False) is None and lm.chat_template(True) == template
    text = lm.apply_chat_template([{"role": "user", "content": "Fellow"}])
    assert text == "Fellow<eos>A:"
    assert lm.tok_encode(text)[-3:].count(lm.eot_token_id) == 1
    assert lm.tok_encode("Fellow<eos>") == [*lm.project.encode("Fellow"), lm.eot_token_id]
