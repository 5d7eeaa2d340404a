from pyterrier_mechir.cli import main

raise SystemExit(main())
