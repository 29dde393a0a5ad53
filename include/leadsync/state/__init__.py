"""What the database of Leadsync remembers: one small module per table group, its queries named and described."""
