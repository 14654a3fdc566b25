"""The usual script: VGG16's last layer by Keras, a logistic regression by scikit-learn, everything anew each time."""

import keras
from sklearn.linear_model import LogisticRegression

(train, train_labels), (test, test_labels) = keras.datasets.cifar10.load_data()
vgg16 = keras.applications.VGG16(include_top=False, pooling="avg", input_shape=(32, 32, 3))
prepare = keras.applications.vgg16.preprocess_input
train_features = vgg16.predict(prepare(train.astype("float32")))
test_features = vgg16.predict(prepare(test.astype("float32")))
classifier = LogisticRegression(max_iter=1000).fit(train_features, train_labels.ravel())
print(f"test accuracy {classifier.score(test_features, test_labels.ravel()):.2%}")
