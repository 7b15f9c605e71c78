"""What a person looks at: quick-look pictures."""
