"""From scores and maps to verdicts: all that it takes is a calibration, so that a rate can be changed at once."""

from .score_calibration import SLACK


def decide(calibration, anomaly_maps, scores, alpha, timesteps, false_alarm_rate=None, bfloat16=False):
    """Judge images; no network runs.

    Args:
        calibration (`ScoreCalibration`): whose scores of good images they are ranked among.
        anomaly_maps (`list[torch.Tensor]`): (height, width) each.
        scores (`torch.Tensor`): (n,).
        alpha (`float`), timesteps (`list[int]`), bfloat16 (`bool`): what maps and scores were computed with.
        false_alarm_rate (`float`, *optional*): share of good parts that may be rejected; by default 1 %, or the
            smallest that can be promised.

    Returns:
        `dict`: p_value, is_anomalous, pred_mask (tensors), false_alarm_rate, image_threshold and pixel_threshold as in
        `AnomalyScoringOutput`.
    """
    rate = calibration.effective_rate(false_alarm_rate)
    pixel_threshold = calibration.pixel_threshold(rate, alpha, timesteps, bfloat16)
    p_value = calibration.p_value(scores, timesteps, bfloat16).cpu().numpy()
    is_anomalous = p_value <= rate + SLACK
    return {
        "p_value": p_value,
        "is_anomalous": is_anomalous,
        "pred_mask": [
            (anomaly_map > pixel_threshold) & bool(anomalous)
            for anomaly_map, anomalous in zip(anomaly_maps, is_anomalous, strict=True)
        ],
        "false_alarm_rate": rate,
        "image_threshold": calibration.image_threshold(rate, timesteps, bfloat16),
        "pixel_threshold": pixel_threshold,
    }
