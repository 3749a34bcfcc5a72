"""A machine without the heavy libraries still does what does not need them."""

import subprocess
import sys

CODE = """
import sys
for name in ("tenseal", "opacus", "art", "torchvision"):
    sys.modules[name] = None  # importing it fails
import secure_ml as sm
from attacks import PGD, Knockoff
from defenses import AdversarialTraining, LabelOnly, Homomorphic
task = sm.task("digits_mlp", tiny=True)
victim = sm.fit(task, [AdversarialTraining(), LabelOnly()])
assert sm.evaluate(victim, [PGD.tiny(), Knockoff.tiny()])
victim = sm.fit(task, [Homomorphic()])
try:
    victim.score()
except sm.SecureMLError as error:
    print(error)
"""


def test_without_the_heavy_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "encrypted inference needs TenSEAL: pip install tenseal\n"
