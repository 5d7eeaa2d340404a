from pyterrier_mechir.commands.cli import main

raise SystemExit(main())
