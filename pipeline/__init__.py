"""A two-stage cached feature pipeline for image classification: VGG16 once, classifiers as often as you like."""
