"""What generates files of the repository and checks them."""
