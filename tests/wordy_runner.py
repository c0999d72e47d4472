"""A process that prints 4 MB without a line's end, and then a word."""

if __name__ == "__main__":
    print("☃" * (4 * 2**20 // 3))
    print("the end")
