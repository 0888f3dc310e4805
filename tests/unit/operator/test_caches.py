"""What the process keeps of objects in its memory."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.caches import Caches
from finetune_operator.models import Models
from tests.unit.operator.runobjects import CHECKPOINT
from tests.unit.operator.runsteps import ended


def test_the_loss_curve_of_a_checkpoint_is_not_kept_and_the_rest_is() -> None:
    record = ended().objects["Checkpoint", CHECKPOINT]
    record["metadata"]["resourceVersion"] = "1"
    curve = [{"step": 10, "train": 2.5}]
    with_curve = {**record, "spec": {**record["spec"], "lossCurve": curve}}
    store = Caches().kinds["Checkpoint"]

    store.put(with_curve)

    namespace = record["metadata"]["namespace"]
    kept = store.get(namespace, CHECKPOINT)
    assert kept is not None
    assert kept["spec"] == record["spec"]
    assert with_curve["spec"]["lossCurve"] == curve, "what was given is as it was"
    assert Models(store, Checkpoint).get(namespace, CHECKPOINT) is not None
