"""Networks that are told how noisy their input is: a U-Net of images, a perceptron of points."""
