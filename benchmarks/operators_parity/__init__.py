"""Our FNO beside that of `neuraloperator`: same weights, same input, same output."""
