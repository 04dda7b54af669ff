"""How rooms are joined and run: recipes, plans, runners, reports."""
