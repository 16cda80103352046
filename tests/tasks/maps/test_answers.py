"""What a detector's explanation is compared with: the same network, its encoder and last layer drawn anew."""

import torch
from small_detectors import NETS, batch, detector

from tomoglot.batches.loader import LoaderConfig
from tomoglot.store.plan import Plan
from tomoglot.tasks.heads.detector import save_detector
from tomoglot.tasks.maps.answers import detector_answers


def test_a_redrawn_detector_has_other_encoders_and_another_last_layer_and_neither_net_is_in_training(tmp_path):
    net = detector(NETS["cct"])
    save_detector(
        tmp_path, net, plan=Plan(), loader=LoaderConfig(workers=0), simulated=True, learned_from={"sub-simulated"}
    )
    answers, again = (detector_answers(tmp_path, seed=3) for _ in range(2))
    trained, redrawn = answers.trained.net, answers.redrawn.net
    torch.testing.assert_close(answers.trained.answer(batch()), net(batch()))
    assert not any(module.training for its in (trained, redrawn) for module in its.modules())
    weights, others = trained.state_dict(), redrawn.state_dict()
    changed = {name.split(".")[0] for name in weights if not torch.equal(weights[name], others[name])}
    # What is between them reads the encoder's map, and stays.
    assert changed == {"recipe", "head"}
    # A last layer as it starts, at zero, would have no gradient and no map.
    assert 0.005 < others["head.weight"].std() < 0.1
    assert all(torch.equal(value, others[name]) for name, value in again.redrawn.net.state_dict().items())
