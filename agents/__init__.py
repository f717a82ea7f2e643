"""Learning: PPO, baselines, and what a trained policy is on disk."""
