# The same task in two commands: features once, then as many classifiers as you like.
set -e
python -m pipeline features   # VGG16 at 64 pixels, 17 taps, into features/; a second time it is found
python -m pipeline train      # a logistic regression, chosen on validation; report, curves and model
