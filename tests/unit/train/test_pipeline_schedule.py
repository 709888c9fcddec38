"""P1: DeepSpeed's pipeline schedules as pure data, run by a simulator whose sends wait for their receiver.

The simulator executes every stage's instructions on buffers that hold micro-batch numbers. It finds a deadlock, a message that
arrives for another micro-batch than the stage expects, a buffer that is overwritten while it is needed, and a pass without its
input.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from deepspeed.runtime.pipe import schedule

STAGES, MICRO_BATCHES = range(1, 9), range(1, 17)
PEER = {"SendActivation": 1, "RecvActivation": -1, "SendGrad": -1, "RecvGrad": 1}
MATCHING = {"SendActivation": "RecvActivation", "SendGrad": "RecvGrad"}


@dataclass
class Stage:
    """What one stage has done. A buffer holds the micro-batch of its input, output and gradient, or nothing."""

    number: int
    last: int
    instructions: deque
    buffers: list[dict] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    backwards: list[int] = field(default_factory=list)
    loads: int = 0
    received: Counter = field(default_factory=Counter)
    peak: int = 0

    def buffer(self, instruction):
        assert 0 <= instruction.buffer_id < len(self.buffers), f"{instruction} of {len(self.buffers)} buffers"
        return self.buffers[instruction.buffer_id]


def stages_of(kind, stages, micro_batches):
    made = []
    for number in range(stages):
        plan = kind(micro_batches=micro_batches, stages=stages, stage_id=number)
        steps = [list(step) for step in plan.steps()]
        buffers = [{} for _ in range(plan.num_pipe_buffers())]
        made.append(Stage(number, stages - 1, deque(i for step in steps for i in step), buffers))
    return made


def compute(stage, instruction, training):
    """Instructions that concern one stage only."""
    name = instruction.name
    if name == "LoadMicroBatch":
        held = stage.buffer(instruction)
        if stage.number == 0:
            assert "input" not in held or held.get("spent"), f"stage 0 loads over a micro-batch that it needs: {held}"
            held.clear()
            held["input"] = stage.loads
        held["labels"] = stage.loads
        stage.loads += 1
    elif name == "ForwardPass":
        held = stage.buffer(instruction)
        assert "input" in held and "output" not in held, f"stage {stage.number} forwards {held}"
        assert stage.number < stage.last or held["labels"] == held["input"]
        held["output"] = held["input"]
        if stage.number == stage.last:
            held["gradient"] = held["output"]
            held["spent"] = not training
        stage.forwards.append(held["input"])
        stage.peak = max(stage.peak, len(stage.forwards) - len(stage.backwards))
    elif name == "BackwardPass":
        held = stage.buffer(instruction)
        assert held.get("gradient") == held["input"] == held["output"], f"stage {stage.number} goes back through {held}"
        stage.backwards.append(held["input"])
        held["input gradient"] = held["input"]
        held["spent"] = stage.number == 0
    else:
        assert name in ("ReduceTiedGrads", "ReduceGrads", "OptimizerStep"), name
        assert training and stage.forwards and len(stage.forwards) == len(stage.backwards), f"{name} before the last backward"


def transfer(sender, receiver, sent, awaited, training):
    """A send meets its receive: the value of the one goes into the buffer of the other."""
    from_, into = sender.buffer(sent), receiver.buffer(awaited)
    if sent.name == "SendActivation":
        value = from_["output"]
        assert "input" not in into or into.get("spent"), f"stage {receiver.number} receives over {into}"
        labels = {k: v for k, v in into.items() if k == "labels"}  # the last stage may load them before the input arrives
        into.clear()
        into |= labels | {"input": value}
        if not training:
            from_["spent"] = True
    else:
        value = from_["input gradient"]
        assert into["output"] == value, f"stage {receiver.number} gets the gradient of {value} for {into}"
        into["gradient"] = value
        from_["spent"] = True
    pair = (awaited.name, sender.number)
    assert value == receiver.received[pair], f"messages of {pair} out of order"
    receiver.received[pair] += 1


def simulate(kind, stages, micro_batches, training):
    """Run all stages to the end. A send waits until its peer's next instruction is the matching receive."""
    made = stages_of(kind, stages, micro_batches)
    moved = True
    while moved:
        moved = False
        for stage in made:
            while stage.instructions and stage.instructions[0].name not in PEER:
                instruction = stage.instructions.popleft()
                if instruction.name == "ForwardPass" and stage.number == stage.last:
                    _labels_are_there(stage, instruction)
                compute(stage, instruction, training)
                moved = True
            if not stage.instructions or stage.instructions[0].name not in MATCHING:
                continue
            sent = stage.instructions[0]
            peer = stage.number + PEER[sent.name]
            assert 0 <= peer < stages, f"stage {stage.number} sends to stage {peer} of {stages}"
            other = made[peer].instructions
            if other and other[0].name == MATCHING[sent.name]:
                transfer(stage, made[peer], stage.instructions.popleft(), other.popleft(), training)
                moved = True
    waiting = {s.number: s.instructions[0] for s in made if s.instructions}
    assert not waiting, f"deadlock with {stages} stages and {micro_batches} micro-batches: {waiting}"
    return made


def _labels_are_there(stage, instruction):
    assert "labels" in stage.buffer(instruction), f"the last stage has no labels for {instruction}"


def check_train(stages, micro_batches, kind=schedule.TrainSchedule):
    made = simulate(kind, stages, micro_batches, training=True)
    everything = list(range(micro_batches))
    for stage in made:
        assert stage.forwards == stage.backwards == everything, f"stage {stage.number}"
        assert stage.peak <= min(stages - stage.number, micro_batches), f"stage {stage.number} keeps {stage.peak} micro-batches"
        assert len(stage.buffers) == max(2, min(stages - stage.number, micro_batches))
        assert stage.loads == (micro_batches if stage.number in (0, stages - 1) else 0)
        assert stage.received[("RecvActivation", stage.number - 1)] == (micro_batches if stage.number else 0)
        assert stage.received[("RecvGrad", stage.number + 1)] == (micro_batches if stage.number < stages - 1 else 0)
    assert made[0].peak == min(stages, micro_batches)  # 1F1B fills the pipeline, and no more
    for number in range(stages):
        plan = kind(micro_batches=micro_batches, stages=stages, stage_id=number)
        names = [i.name for step in plan.steps() for i in step]
        assert names[-3:] == ["ReduceTiedGrads", "ReduceGrads", "OptimizerStep"]
        assert all(names.count(name) == 1 for name in names[-3:])


def check_inference(stages, micro_batches, kind=schedule.InferenceSchedule):
    for stage in simulate(kind, stages, micro_batches, training=False):
        assert stage.forwards == list(range(micro_batches)) and stage.backwards == []
        assert len(stage.buffers) == 2
        assert stage.received[("RecvActivation", stage.number - 1)] == (micro_batches if stage.number else 0)


@pytest.mark.parametrize("stages", STAGES)
def test_p1_train_schedule(stages):
    for micro_batches in MICRO_BATCHES:
        check_train(stages, micro_batches)


@pytest.mark.parametrize("stages", STAGES)
def test_p1_inference_schedule(stages):
    for micro_batches in MICRO_BATCHES:
        check_inference(stages, micro_batches)


def test_p1_the_pipeline_engine_runs_these_schedules():
    import inspect

    from deepspeed.runtime.pipe.engine import PipelineEngine

    from mads.train import pipeline

    assert "TrainSchedule(" in inspect.getsource(PipelineEngine._train_schedule)
    known = {i.__name__ for i in pipeline._StageEngine._INSTRUCTION_MAP}
    plans = [
        kind(micro_batches=6, stages=4, stage_id=s)
        for kind in (schedule.TrainSchedule, schedule.InferenceSchedule)
        for s in range(4)
    ]
    assert {i.name for plan in plans for step in plan.steps() for i in step} <= known


@pytest.mark.parametrize(
    "commands, complaint",
    [
        ([["SendActivation", "RecvGrad"], ["SendGrad", "RecvActivation"]], "deadlock"),
        ([["ForwardPass"], []], "forwards"),
        ([["SendGrad"], []], "sends to stage -1"),
    ],
)
def test_p1_the_simulator_can_tell(commands, complaint):
    class Broken(schedule.PipeSchedule):
        def steps(self):
            for name in commands[self.stage_id]:
                yield [getattr(schedule, name)(buffer_id=0)]

    with pytest.raises(AssertionError, match=complaint):
        simulate(Broken, 2, 1, training=True)
