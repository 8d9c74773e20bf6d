"""Pictures that teach: curves of losses and activations, optimiser paths, loss landscapes, grids of small trainings."""
