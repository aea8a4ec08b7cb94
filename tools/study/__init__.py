"""Study and write chapters: lab, run, refresh, the suite, and what they share."""
