"""Looking inside: metrics of networks, a diagnosis by layer, trainability on new targets."""
