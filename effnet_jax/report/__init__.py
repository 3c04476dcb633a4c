"""Tables, figures and a page of what was run."""
