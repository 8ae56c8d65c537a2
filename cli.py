from solver.cli import main

if __name__ == "__main__":  # processes that a sweep starts import this file, too
    main()
