"""Deep Fake Image Detector: the support package of the course report.

Label 0 is Real, label 1 is Fake. Fake is the positive class; a score is the probability of Fake.
"""

__version__ = "0.1.0"
