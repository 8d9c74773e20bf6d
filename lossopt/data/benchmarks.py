"""The four benchmarks of metric learning, in their owners' file layouts and with the splits that papers report.

Their images may not be passed on, so nothing is downloaded here; the error says where they come from.
Validation classes are held out of the training classes by name and seed; papers train on those, too.
"""

from collections.abc import Sequence
from pathlib import Path

from lossopt.data.dataset import Splits
from lossopt.data.decode import Box
from lossopt.data.files import LabelledFile, tabulate
from lossopt.data.locate import find_folder, listing, shown
from lossopt.data.split import hold_out_validation
from lossopt.errors import ConfigError, DataError


class CUB200:
    """Caltech-UCSD Birds 200-2011: 11,788 photos of 200 kinds; the first 100 train, the last 100 test.

    Args:
        root: the data folder, which holds CUB_200_2011; None: LOSSOPT_DATA, else ./data.
        image_size: side of the square in pixels.
        crop_to_box: cut out the bird's bounding box first (not done in most papers since 2016).
        validation_share: of the training classes, held out.
        seed: of that choice.
        check: open the header of every image first.

    Source: Wah et al. 2011; split of Oh Song et al. 2016, Deep Metric Learning via Lifted Structured Feature Embedding.
    """

    channels = 3
    inverted = False
    area = False

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 224,
        crop_to_box: bool = False,
        validation_share: float = 0.1,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        _check_share(validation_share)
        self.root, self.image_size, self.crop_to_box = root, image_size, crop_to_box
        self.validation_share, self.seed, self.check = validation_share, seed, check

    def splits(self) -> Splits:
        """The three tables; pixels stay on disk. Raises: DataError: files missing, malformed or unreadable."""
        lists = ["images.txt", "image_class_labels.txt", "classes.txt"]
        boxes_list = "bounding_boxes.txt"
        folder = find_folder(
            "CUB-200-2011 (from www.vision.caltech.edu/datasets/cub_200_2011)",
            self.root,
            ("CUB_200_2011", "cub/CUB_200_2011", "cub", "cub200/CUB_200_2011", ""),
            [*lists, boxes_list] if self.crop_to_box else lists,
        )
        images, labels, classes = (dict(_lines(folder / name, 2)) for name in lists)
        rows = _lines(folder / boxes_list, 5) if self.crop_to_box else []
        boxes = {row[0]: _box(folder / boxes_list, row[1:]) for row in rows}
        _refuse_gaps(folder / "image_class_labels.txt", set(images) - set(labels))
        _refuse_gaps(folder / "classes.txt", set(labels.values()) - set(classes))
        halves: tuple[list[LabelledFile], list[LabelledFile]] = ([], [])
        for number, name in images.items():
            kind = labels[number]
            file = LabelledFile(folder / "images" / name, name, classes[kind], crop=boxes.get(number))
            halves[_whole(folder / "classes.txt", kind) > 100].append(file)
        return _unseen(self, "CUB-200-2011", "the first 100 kinds of birds", "the last 100", *halves)


class Cars196:
    """Stanford Cars: 16,185 photos of 196 models; the first 98 train, the last 98 test.

    Either layout is read: cars_annos.mat with car_ims/, or the devkit (cars_train_annos.mat,
    cars_test_annos_withlabels.mat, cars_meta.mat) with cars_train/ and cars_test/.

    Args:
        root: the data folder; None: LOSSOPT_DATA, else ./data.
        image_size: side of the square in pixels.
        crop_to_box: cut out the car's bounding box first (not done in most papers since 2016).
        validation_share: of the training classes, held out.
        seed: of that choice.
        check: open the header of every image first.

    Source: Krause et al. 2013; split of Oh Song et al. 2016.
    """

    channels = 3
    inverted = False
    area = False

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 224,
        crop_to_box: bool = False,
        validation_share: float = 0.1,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        _check_share(validation_share)
        self.root, self.image_size, self.crop_to_box = root, image_size, crop_to_box
        self.validation_share, self.seed, self.check = validation_share, seed, check

    def splits(self) -> Splits:
        """The three tables; pixels stay on disk. Raises: DataError: files missing, malformed or unreadable."""
        what = "Cars196 (Stanford Cars; cars_annos.mat with car_ims/, or devkit/ with cars_train/ and cars_test/)"
        layouts = ("cars196", "stanford_cars", "Cars196", "cars", "")
        try:
            folder = find_folder(what, self.root, layouts, ["cars_annos.mat"])
        except DataError:
            folder = find_folder(what, self.root, layouts, ["devkit/cars_train_annos.mat", "devkit/cars_meta.mat"])
            rows, names = self._devkit(folder)
        else:
            path = folder / "cars_annos.mat"
            names = _matlab(path, "class_names")
            rows = [(str(row["relative_im_path"]), row) for row in _matlab(path, "annotations")]
        halves: tuple[list[LabelledFile], list[LabelledFile]] = ([], [])
        for name, row in rows:
            number = int(row["class"])
            if not 1 <= number <= len(names):
                raise DataError(f"{shown(folder)}: {name} has class {number}, but there are {len(names)} class names.")
            left, top, right, bottom = (int(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2"))
            box = (left, top, right, bottom) if self.crop_to_box else None
            class_name = f"{number:03d}.{names[number - 1]}"
            halves[number > 98].append(LabelledFile(folder / name, name, class_name, crop=box))
        return _unseen(self, "Cars196", "the first 98 models", "the last 98", *halves)

    def _devkit(self, folder: Path) -> tuple[list, Sequence]:
        rows = []
        test = next(
            (path for path in (folder / "devkit", folder) if (path / "cars_test_annos_withlabels.mat").is_file()), None
        )
        if test is None:
            raise DataError(
                f"{shown(folder)} has no cars_test_annos_withlabels.mat; the split by classes needs the labels of all "
                "images. It is a file of its own beside the devkit."
            )
        for path, images in (
            (folder / "devkit" / "cars_train_annos.mat", "cars_train"),
            (test / "cars_test_annos_withlabels.mat", "cars_test"),
        ):
            rows += [(f"{images}/{row['fname']}", row) for row in _matlab(path, "annotations")]
        return rows, _matlab(folder / "devkit" / "cars_meta.mat", "class_names")


class StanfordOnlineProducts:
    """Stanford Online Products: 120,053 photos of 22,634 products in 12 categories (the groups).

    Train and test are the owners' lists: 11,318 and 11,316 products.

    Args:
        root: the data folder, which holds Stanford_Online_Products; None: LOSSOPT_DATA, else ./data.
        image_size: side of the square in pixels.
        validation_share: of the training products, held out.
        seed: of that choice.
        check: open the header of every image first.

    Source: Oh Song et al. 2016.
    """

    channels = 3
    inverted = False
    area = False

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 224,
        validation_share: float = 0.1,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        _check_share(validation_share)
        self.root, self.image_size = root, image_size
        self.validation_share, self.seed, self.check = validation_share, seed, check

    def splits(self) -> Splits:
        """The three tables; pixels stay on disk. Raises: DataError: files missing, malformed or unreadable."""
        lists = ["Ebay_train.txt", "Ebay_test.txt"]
        folder = find_folder(
            "Stanford Online Products (from cvgl.stanford.edu/projects/lifted_struct)",
            self.root,
            ("Stanford_Online_Products", "sop/Stanford_Online_Products", "sop", ""),
            lists,
        )
        train, test = (
            [
                LabelledFile(folder / path, path, f"product {product}", path.partition("/")[0].removesuffix("_final"))
                for _, product, _, path in _lines(folder / name, 4, header="image_id")
            ]
            for name in lists
        )
        return _unseen(
            self, "Stanford Online Products", "the owners' training products", "their test ones", train, test
        )


class InShop:
    """DeepFashion In-Shop: 52,712 photos of 7,982 clothing items; test queries are searched in a separate gallery.

    Args:
        root: the data folder; None: LOSSOPT_DATA, else ./data.
        image_size: side of the square in pixels.
        validation_share: of the training items, held out; these search among themselves.
        seed: of that choice.
        check: open the header of every image first.

    Source: Liu et al. 2016, DeepFashion; list_eval_partition.txt.
    """

    channels = 3
    inverted = False
    area = False

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 224,
        validation_share: float = 0.1,
        seed: int = 0,
        check: bool = True,
    ) -> None:
        _check_share(validation_share)
        self.root, self.image_size = root, image_size
        self.validation_share, self.seed, self.check = validation_share, seed, check

    def splits(self) -> Splits:
        """The three tables; pixels stay on disk. Raises: DataError: files missing, malformed or unreadable."""
        name, what = "list_eval_partition.txt", "In-Shop (DeepFashion In-shop Clothes Retrieval Benchmark)"
        places = ("In-shop Clothes Retrieval Benchmark", "inshop", "in_shop", "")
        layouts = [f"{place}/{part}".strip("/") for place in places for part in ("Eval", "eval", "")]
        partition = find_folder(what, self.root, layouts, [name]) / name
        base = partition.parent.parent if partition.parent.name.lower() == "eval" else partition.parent
        images = next((base / part for part in ("Img", "") if (base / part / "img").is_dir()), base)
        train, test, wrong = [], [], []
        for path, item, part in _lines(partition, 3, header="image_name", skip=1):
            if part == "train":
                train.append(LabelledFile(images / path, path, item))
            elif part in ("query", "gallery"):
                file = LabelledFile(images / path, path, item, query=part == "query", gallery=part == "gallery")
                test.append(file)
            else:
                wrong.append(f"{path}: {part}")
        if wrong:
            raise DataError(f"{shown(partition)}: neither train, query nor gallery: {listing(wrong)}.")
        return _unseen(self, "In-Shop", "the training items", "test queries searched in the test gallery", train, test)


def _unseen(
    source: CUB200 | Cars196 | StanfordOnlineProducts | InShop,
    title: str,
    seen: str,
    unseen: str,
    train: list[LabelledFile],
    test: list[LabelledFile],
) -> Splits:
    """Train classes, a share of them held out for validation, and unseen test classes."""
    if not train or not test:
        raise DataError(f"{title}: the lists name {len(train)} training and {len(test)} test images; both are needed.")
    everything = tabulate(train, source.image_size, 3, source.check)
    kept, held = hold_out_validation(everything, source.validation_share, source.seed, class_disjoint=True)
    return Splits(
        kept,
        held,
        tabulate(test, source.image_size, 3, source.check),
        f"{title}: train on {seen} but {len(held.class_names)} of {len(everything.class_names)} held out for "
        f"validation (by name and seed {source.seed}); test: {unseen} (class-disjoint).",
        class_disjoint=True,
    )


def _lines(path: Path, cells: int, header: str = "", skip: int = 0) -> list[list[str]]:
    """The cells of each line, which are separated by blanks.

    header: the first cell of a header line, left out. skip: how many lines come before it.
    """
    try:
        lines = path.read_text("utf-8").splitlines()[skip:]
    except (OSError, UnicodeDecodeError) as failure:
        raise DataError(f"{shown(path)} cannot be read as text: {failure}.") from failure
    if header and lines and lines[0].split()[:1] == [header]:
        lines = lines[1:]
    lines = [line for line in lines if line.strip()]
    rows = [line.split(maxsplit=cells - 1) for line in lines]
    wrong = [repr(line) for line, row in zip(lines, rows, strict=True) if len(row) != cells]
    if wrong:
        raise DataError(f"{shown(path)}: {len(wrong)} lines do not have {cells} columns: {listing(wrong, 3)}.")
    return [[cell.strip() for cell in row] for row in rows]


def _box(path: Path, cells: list[str]) -> Box:
    """x, y, width, height as (left, top, right, bottom)."""
    try:
        x, y, width, height = (float(cell) for cell in cells)
    except ValueError as failure:
        raise DataError(f"{shown(path)}: {' '.join(cells)!r} is not x, y, width and height.") from failure
    return round(x), round(y), round(x + width), round(y + height)


def _whole(path: Path, text: str) -> int:
    if not text.isdecimal():
        raise DataError(f"{shown(path)}: {text!r} is not the number of a class.")
    return int(text)


def _matlab(path: Path, name: str) -> Sequence:
    """A variable of a MATLAB file: a struct array as NumPy records, or a list of strings."""
    from scipy.io import loadmat  # only for Cars196
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path, squeeze_me=True, variable_names=[name])[name].ravel()
    except (OSError, ValueError, KeyError, TypeError, MatReadError) as failure:
        raise DataError(f"{shown(path)} does not hold {name} as a MATLAB 5 file: {failure}.") from failure


def _refuse_gaps(path: Path, missing: set[str]) -> None:
    if missing:
        raise DataError(f"{shown(path)} has no line for {len(missing)} numbers: {listing(sorted(missing))}.")


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ConfigError(f"validation_share lies between 0 and 1, got {share}.")
