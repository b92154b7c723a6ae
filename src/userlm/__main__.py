from userlm.cli import main

main()
