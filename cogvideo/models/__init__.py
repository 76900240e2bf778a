"""The three networks, on SwissArmyTransformer: stage 1, stage 2 and super-resolution, on a backbone that they share."""
