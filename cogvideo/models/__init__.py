"""The three networks on SwissArmyTransformer: stage 1, stage 2 and super-resolution, with a shared backbone."""
