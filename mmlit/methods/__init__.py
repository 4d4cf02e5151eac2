"The methods, by chapters: each registers what it has in `mmlit.learner.METHODS`, which lists them in this order."
from . import baselines, multimodal_loss, tcmax, mcr, shapley, modulation  # noqa: F401
