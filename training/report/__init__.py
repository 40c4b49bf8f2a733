"""The report "Autoencoder Project Summary" (Yang and Zheng): each of its experiments, whole."""
