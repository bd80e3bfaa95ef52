"""The engine's promises: nothing is lost, nobody waits for ever, each image's fate is its own."""

from __future__ import annotations

import math
import random
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from models.flux.config import EngineConfig
from models.flux.engine import Event, Progress
from models.flux.errors import (
    Cancelled,
    DeadlinePassed,
    Draining,
    EngineBroken,
    EngineStopped,
    InvalidRequest,
    LoraInUse,
    LoraRefused,
    LoraVanished,
    NotFinite,
    OutOfMemory,
    QueueFull,
    Unexplained,
    UnknownLora,
)
from models.flux.request import JobState
from models.flux.runner import Runner
from tests.models.flux.conftest import (
    LORAS,
    RecordingRunner,
    request,
    run_dry,
    write_lora,
)
from tests.models.flux.tiny import HEIGHT, WIDTH, tiny_spec

CONFIG = EngineConfig(device="cpu", threads=1, lora_slots=4, lora_max_rank=16)
WAIT_S = 60


class Faulty(RecordingRunner):
    """A runner to which something happens at chosen moments."""

    def __init__(self, spec, fault=lambda rows: None) -> None:
        super().__init__(spec, CONFIG)
        self.fault = fault

    def step(self, rows) -> None:
        self.fault(rows)
        super().step(rows)


def test_pictures_come_in_the_size_that_was_asked_for(open_engine):
    engine = open_engine()
    tickets = engine.submit([request(), request(1, width=HEIGHT, height=WIDTH)])
    run_dry(engine)
    assert [ticket.image.result(0).size for ticket in tickets] == [(WIDTH, HEIGHT), (HEIGHT, WIDTH)]


@pytest.mark.parametrize("after", [0, 1, 3, 6, 7])
def test_cancelling_at_any_stage_frees_the_row_and_disturbs_nobody(open_engine, after):
    """Waiting, just begun, half drawn, drawn and not decoded, delivered."""
    engine, undisturbed = open_engine(), open_engine()
    neighbour = request(9, steps=8, lora="blue")
    gone = engine.submit([request(1, steps=6, lora="red")])
    engine.submit([neighbour])
    for _ in range(after):
        engine.step()
    engine.cancel(gone)
    engine.check_integrity()
    engine.cancel(gone)  # twice is once
    run_dry(engine)
    undisturbed.submit([neighbour])
    run_dry(undisturbed)
    assert torch.allclose(
        engine.runner.latents[neighbour], undisturbed.runner.latents[neighbour], atol=1e-5
    )
    if gone[0].image.exception(0) is not None:
        assert isinstance(gone[0].image.exception(0), Cancelled)
    assert engine.snapshot().running == engine.snapshot().waiting == 0


def test_a_parked_image_can_be_cancelled(open_engine):
    engine = open_engine(max_rows=1)
    slow = engine.submit([request(1, steps=40)])
    for _ in range(5):
        engine.step()
    quick = engine.submit([request(2, steps=1)])
    engine.step()
    assert engine.snapshot().parked == 1
    engine.cancel(slow)
    run_dry(engine)
    assert quick[0].image.result(0).size == (WIDTH, HEIGHT)
    assert engine.snapshot().parked == 0


def test_a_parked_image_goes_on_where_it_stopped(open_engine):
    engine, alone = open_engine(max_rows=1), open_engine(max_rows=1)
    slow = request(1, steps=30, lora="green")
    engine.submit([slow])
    for n in range(4):
        for _ in range(3):
            engine.step()
        engine.submit([request(10 + n, steps=1, lora="red")])
    run_dry(engine)
    alone.submit([slow])
    run_dry(alone)
    assert torch.allclose(engine.runner.latents[slow], alone.runner.latents[slow], atol=1e-5)


def test_more_loras_than_slots_take_turns(open_engine):
    engine, roomy = open_engine(slots=1), open_engine(slots=3)
    wanted = [request(n, steps=6, lora=lora) for n, lora in enumerate((*LORAS, *LORAS))]
    for each in (engine, roomy):
        tickets = each.submit(wanted)
        run_dry(each)
        assert all(ticket.image.result(0) for ticket in tickets)
    for one in wanted:
        assert torch.allclose(engine.runner.latents[one], roomy.runner.latents[one], atol=1e-5)


def test_a_lora_added_while_images_are_drawn_disturbs_none(open_engine, tmp_path):
    engine, calm = open_engine(), open_engine()
    wanted = [request(n, steps=20, lora=lora) for n, lora in enumerate((None, *LORAS))]
    engine.submit(wanted)
    for _ in range(5):
        engine.step()
    file = write_lora(tmp_path / "late.safetensors", engine.runner.linears, 8, seed=77)
    engine.library.add("late", file)
    engine.library.add("red", file)  # the name changes its meaning; images under way keep theirs
    late = engine.submit([request(50, steps=3, lora="late")])
    run_dry(engine)
    calm.submit(wanted)
    run_dry(calm)
    assert late[0].image.result(0)
    for one in wanted:
        assert torch.allclose(engine.runner.latents[one], calm.runner.latents[one], atol=1e-5)


def test_a_lora_in_use_is_not_removed(open_engine):
    engine = open_engine()
    engine.submit([request(lora="red")])
    with pytest.raises(LoraInUse, match="red"):
        engine.remove_lora("red")
    run_dry(engine)
    engine.remove_lora("red")
    with pytest.raises(UnknownLora, match="blue, green"):
        engine.submit([request(lora="red")])


def test_a_lora_that_vanished_fails_its_own_images_alone(open_engine, tmp_path):
    engine = open_engine()
    file = write_lora(tmp_path / "brief.safetensors", engine.runner.linears, 4, seed=5)
    engine.library.add("brief", file)
    engine.library._weights.clear()  # as if others had pushed it out of memory
    doomed, fine = engine.submit([request(1, lora="brief"), request(2, lora="red")])
    file.unlink()
    run_dry(engine)
    assert isinstance(doomed.image.exception(0), LoraVanished)
    assert fine.image.result(0)


def test_a_lora_file_that_changed_is_not_taken_for_the_old_one(open_engine, tmp_path):
    engine = open_engine()
    file = write_lora(tmp_path / "shifty.safetensors", engine.runner.linears, 4, seed=5)
    engine.library.add("shifty", file)
    engine.library._weights.clear()
    write_lora(file, engine.runner.linears, 4, seed=6)
    (ticket,) = engine.submit([request(lora="shifty")])
    run_dry(engine)
    assert isinstance(ticket.image.exception(0), LoraVanished)


def test_a_nan_fails_that_image_alone(open_engine, tiny_folder):
    def poison(rows) -> None:
        for row in rows:
            if row.request.seed == 13 and row.step == 2:
                row.latents_LC = row.latents_LC * math.nan

    engine = open_engine(runner=Faulty(tiny_spec(tiny_folder), poison))
    bad, *good = engine.submit([request(13, lora="red"), request(1), request(2, lora="blue")])
    run_dry(engine)
    assert isinstance(bad.image.exception(0), NotFinite)
    calm = open_engine()
    calm.submit([ticket.request for ticket in good])
    run_dry(calm)
    for ticket in good:
        drawn, alone = engine.runner.latents[ticket.request], calm.runner.latents[ticket.request]
        assert torch.allclose(drawn, alone, atol=1e-5)


def test_out_of_memory_halves_the_batch_and_goes_on(open_engine, tiny_folder):
    def full(rows) -> None:
        if len(rows) > 2:
            raise OutOfMemory("the device's memory is full")

    engine = open_engine(runner=Faulty(tiny_spec(tiny_folder), full))
    wanted = [request(n, lora=lora) for n, lora in enumerate((None, *LORAS, None, "red"))]
    tickets = engine.submit(wanted)
    run_dry(engine)
    assert all(ticket.image.result(0) for ticket in tickets)
    calm = open_engine()
    calm.submit(wanted)
    run_dry(calm)
    for one in wanted:
        assert torch.allclose(engine.runner.latents[one], calm.runner.latents[one], atol=1e-5)


def test_memory_that_runs_out_in_a_step_takes_back_no_picture_of_its_boundary(
    open_engine, tiny_folder
):
    """One is delivered, another's preview is shown, and then the step of the rest fails: once."""
    fits = [8]

    def full(rows) -> None:
        if len(rows) > fits[0]:
            raise OutOfMemory("the device's memory is full")

    engine = open_engine(runner=Faulty(tiny_spec(tiny_folder), full))
    heard = []
    short, *long = engine.submit([request(1, steps=2), request(2), request(3)])
    long += engine.submit([request(4, steps=4, previews=1)], heard.append)
    for _ in range(2):
        engine.step()
    fits[0] = 1
    run_dry(engine)
    assert short.image.result(0)
    assert all(ticket.image.result(0) for ticket in long)
    assert [event.kind for event in heard].count(Progress.PREVIEW) == 1


def test_an_image_that_does_not_fit_alone_fails_alone(open_engine, tiny_folder):
    def huge(rows) -> None:
        if any(row.request.width > WIDTH for row in rows):
            raise OutOfMemory("the device's memory is full")

    engine = open_engine(runner=Faulty(tiny_spec(tiny_folder), huge))
    big, small = engine.submit([request(1, width=128, height=64), request(2)])
    run_dry(engine)
    assert isinstance(big.image.exception(0), OutOfMemory)
    assert small.image.result(0)


def test_a_fault_that_nobody_foresaw_fails_its_batch_and_no_other(open_engine, tiny_folder):
    def odd(rows) -> None:
        if any(row.request.seed == 6 for row in rows):
            raise ZeroDivisionError

    engine = open_engine(runner=Faulty(tiny_spec(tiny_folder), odd), max_rows=1)
    bad, good = engine.submit([request(6), request(7)])
    run_dry(engine)
    assert isinstance(bad.image.exception(0), Unexplained)
    assert good.image.result(0)


def test_an_engine_that_fails_again_and_again_takes_nothing_in(open_engine, tiny_folder):
    def always(rows) -> None:
        raise ZeroDivisionError

    engine = open_engine(runner=Faulty(tiny_spec(tiny_folder), always), max_rows=1)
    engine.start()
    tickets = engine.submit([request(n) for n in range(5)])
    for ticket in tickets:
        assert isinstance(ticket.image.exception(WAIT_S), Unexplained)
    assert not engine.is_ready
    with pytest.raises(EngineBroken):
        engine.submit([request()])


def test_all_of_a_request_is_taken_or_none(open_engine):
    engine = open_engine(max_waiting=4)
    engine.submit([request(n) for n in range(2)])
    with pytest.raises(QueueFull):
        engine.submit([request(n) for n in range(3)])
    engine.check_integrity()
    assert engine.snapshot().waiting == 2
    engine.submit([request(n) for n in range(2)])
    run_dry(engine)


def test_a_deadline_that_the_engine_missed_ends_the_image(open_engine):
    now = [0.0]
    engine = open_engine(clock=lambda: now[0])
    late, other = engine.submit([request(1, deadline_s=5.0), request(2)])
    engine.step()
    now[0] = 6.0
    run_dry(engine)
    assert isinstance(late.image.exception(0), DeadlinePassed)
    assert other.image.result(0)


def test_previews_come_on_the_way_and_differ_from_the_end(open_engine):
    engine, heard = open_engine(), []
    (ticket,) = engine.submit([request(steps=12, previews=3)], heard.append)
    run_dry(engine)
    previews = [event for event in heard if event.kind is Progress.PREVIEW]
    assert len(previews) == 3
    assert all(event.image.size == (WIDTH, HEIGHT) for event in previews)
    assert previews[0].image.tobytes() != ticket.image.result(0).tobytes()
    steps = [event.steps_done for event in heard if event.kind is Progress.STEP]
    assert steps == list(range(1, 13))


def test_drain_finishes_what_runs_and_refuses_what_waits(open_engine):
    engine = open_engine(max_rows=1)
    engine.start()
    begun = threading.Event()
    running = engine.submit([request(1, steps=60)], lambda _: begun.set())
    assert begun.wait(WAIT_S)
    waiting = engine.submit([request(2, steps=60)])
    engine.drain(WAIT_S)
    assert running[0].image.result(0)
    assert isinstance(waiting[0].image.exception(0), EngineStopped)
    with pytest.raises(Draining) as refused:
        engine.submit([request()])
    assert refused.value.retry_after_s > 0


def test_drain_is_over_when_its_time_is(open_engine, tiny_folder):
    engine = open_engine(runner=Faulty(tiny_spec(tiny_folder), lambda rows: time.sleep(0.05)))
    engine.start()
    (ticket,) = engine.submit([request(steps=100)])
    engine.drain(0.3)
    assert isinstance(ticket.image.exception(WAIT_S), EngineStopped)


def test_two_clients_in_threads_get_what_they_would_get_alone(open_engine):
    engine, calm = open_engine(), open_engine()
    engine.start()
    crowds = [
        [
            request(
                100 * who + n, steps=3 + n, lora=(None, *LORAS)[n % 4], prompt=f"a street {who}"
            )
            for n in range(8)
        ]
        for who in range(2)
    ]
    failures: list[BaseException] = []

    def client(wanted) -> None:
        try:
            for one in wanted:
                (ticket,) = engine.submit([one])
                if one.seed % 3 == 0:
                    engine.cancel(engine.submit([replace(one, steps=50)]))
                assert ticket.image.result(WAIT_S).size == (WIDTH, HEIGHT)
        except BaseException as error:  # noqa: BLE001  (handed to the main thread)
            failures.append(error)

    threads = [threading.Thread(target=client, args=(crowd,)) for crowd in crowds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not failures
    wanted = [one for crowd in crowds for one in crowd]
    calm.submit(wanted)
    run_dry(calm)
    for one in wanted:
        assert torch.allclose(engine.runner.latents[one], calm.runner.latents[one], atol=1e-5)


def test_a_thousand_random_events_leave_the_books_balanced(open_engine, tiny_folder):
    dice = random.Random(0)

    def sometimes(rows) -> None:
        if len(rows) > 1 and dice.random() < 0.02:
            raise OutOfMemory("the device's memory is full")
        if dice.random() < 0.03:
            rows[0].latents_LC = rows[0].latents_LC * math.nan

    engine = open_engine(runner=Faulty(tiny_spec(tiny_folder), sometimes), slots=2, max_waiting=8)
    tickets = []
    for n in range(1_000):
        kind = dice.random()
        if kind < 0.3:
            one = request(
                n,
                steps=dice.randint(1, 6),
                lora=dice.choice([None, *LORAS]),
                width=dice.choice([32, 48, WIDTH]),
                previews=dice.randint(0, 2),
            )
            with suppress(QueueFull):
                tickets += engine.submit([one])
        elif kind < 0.36 and tickets:
            engine.cancel([dice.choice(tickets)])
        else:
            engine.step()
        engine.check_integrity()
    run_dry(engine)
    assert all(ticket.image.done() for ticket in tickets)
    outcomes = {type(ticket.image.exception(0)) for ticket in tickets}
    assert {type(None), Cancelled, NotFinite} <= outcomes


def test_idle_engines_hold_no_rows(open_engine):
    engine = open_engine()
    engine.submit([request(lora="red")])
    run_dry(engine)
    engine.runner.forget_batch()
    assert not engine._watched
    assert engine.runner._batch is None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"width": 60}, "width"),
        ({"height": 0}, "height"),
        ({"width": -64}, "width"),
        ({"width": 4096, "height": 4096}, "width"),
        ({"steps": 0}, "steps"),
        ({"steps": 10_000}, "steps"),
        ({"guidance": math.nan}, "guidance"),
        ({"guidance": math.inf}, "guidance"),
        ({"guidance": None}, "guidance"),
        ({"guidance": -1.0}, "guidance"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n"}, "prompt"),
        ({"prompt": "a" * 100_000}, "prompt"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"lora_scale": math.nan}, "lora_scale"),
        ({"lora_scale": 100.0}, "lora_scale"),
        ({"deadline_s": 0.0}, "deadline_s"),
        ({"deadline_s": math.nan}, "deadline_s"),
        ({"deadline_s": 1e-6}, "deadline_s"),
        ({"previews": 99}, "previews"),
        ({"lora": "nobody"}, "lora"),
    ],
)
def test_bad_input_names_its_field_and_takes_nothing(open_engine, changes, field):
    engine = open_engine()
    with pytest.raises(InvalidRequest) as refused:
        engine.submit([request(1), request(**{"seed": 2, **changes})])
    assert refused.value.field == field
    assert engine.snapshot().waiting == 0


@pytest.mark.parametrize("prompt", ["🎬" * 2_500, "콘티 " * 500, "a\x00b", "\u202e" + "abc"])
def test_odd_prompts_are_drawn(open_engine, prompt):
    engine = open_engine()
    (ticket,) = engine.submit([request(prompt=prompt)])
    run_dry(engine)
    assert ticket.image.result(0)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_files_that_are_no_loras_are_refused_and_change_nothing(open_engine, tmp_path, content):
    engine = open_engine()
    before = engine.library.find("red")
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(LoraRefused):
        engine.library.add("red", file)
    assert engine.library.find("red") == before


def test_no_batch_is_compiled_twice(tiny_folder, lora_folder, open_engine):
    """Fifty compositions of one to six rows, with LoRAs coming and going: no graph is made anew."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    config = replace(CONFIG, compile=True, compile_backend="eager")
    runner = Runner(tiny_spec(tiny_folder), config)
    engine = open_engine(runner=runner, max_rows=6, slots=2)
    runner.warm_up(WIDTH, HEIGHT)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    dice = random.Random(4)
    for n in range(50):
        rows = dice.randint(1, 6)
        loras = [dice.choice([None, *LORAS]) for _ in range(rows)]
        engine.submit([request(n + k, steps=2, lora=lora) for k, lora in enumerate(loras)])
        run_dry(engine)
    assert counters["stats"]["unique_graphs"] == graphs


def test_events_say_how_far_it_is(open_engine):
    engine, heard = open_engine(), []
    engine.submit([request(steps=2)], heard.append)
    run_dry(engine)
    assert heard == [Event(Progress.STEP, 1, 2), Event(Progress.STEP, 2, 2)]


def test_every_state_is_accounted_for(open_engine):
    counted = []

    class Counting:
        def stepped(self, rows, seconds): ...
        def ended(self, state, seconds):
            counted.append(state)

        def refused(self, reason):
            counted.append(reason)

    engine = open_engine(observer=Counting(), max_waiting=2)
    cancelled, _ = engine.submit([request(1), request(2)])
    engine.cancel([cancelled])
    with pytest.raises(QueueFull):
        engine.submit([request(n) for n in range(5)])
    run_dry(engine)
    assert counted.count(JobState.FINISHED) == 1
    assert "queue_full" in counted
