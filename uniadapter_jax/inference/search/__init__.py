"""A folder of videos and pictures as an index, and what is found in it; see docs/search.md.

index = Index.open("INDEX")
for hit in index.search("a red car turns left", k=5):
    print(hit.score, hit.path, hit.start, hit.end)
"""
