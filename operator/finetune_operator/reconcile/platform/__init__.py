"""What the platform team offers: ComputeProfiles and stores, and whether an object can use them."""
