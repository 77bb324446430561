"""The static, run and node tiers, the seal of their result, and the policy that asks for it."""
