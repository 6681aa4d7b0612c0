"""What two rooms or more use and what knows none of them."""
